"""`pilothouse records`: look into the database of records, whether or not a server is running."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilothouse.api.record_query import MAX_LIMIT, parse_filters
from pilothouse.cli.serve import DEFAULT_RECORDS
from pilothouse.core.config import RecordsConfig
from pilothouse.core.errors import ArtefactError
from pilothouse.records.filters import Filters, Order
from pilothouse.records.store import RecordStore

app = typer.Typer(no_args_is_help=True)

Database = Annotated[
    str, typer.Option("--records", envvar="PILOTHOUSE_RECORDS", help="Database of records, as SQLAlchemy's URL.")
]
Flagged = Annotated[bool | None, typer.Option(help="Only those that a probe flagged, or only the others.")]
ProbeName = Annotated[str | None, typer.Option("--probe", help="Only those that this probe read.")]
ModelName = Annotated[str | None, typer.Option("--model", help="Only those of this model.")]
Steering = Annotated[str | None, typer.Option(help="Only those steered like this: none, a name, names with +, adhoc.")]
Route = Annotated[str | None, typer.Option(help="Only those of this route.")]
Since = Annotated[str | None, typer.Option(help="From this time on: seconds since 1970, or ISO 8601.")]
Until = Annotated[str | None, typer.Option(help="Before this time.")]
Labelled = Annotated[str | None, typer.Option("--label", help="Only those labelled true, false, any, or none.")]
MinScore = Annotated[float | None, typer.Option(help="Only those with a score of at least this.")]
MaxScore = Annotated[float | None, typer.Option(help="Only those with a score of at most this.")]


@app.command("list")
def list_records(
    records: Database = DEFAULT_RECORDS,
    flagged: Flagged = None,
    probe: ProbeName = None,
    model: ModelName = None,
    steering: Steering = None,
    route: Route = None,
    since: Since = None,
    until: Until = None,
    label: Labelled = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
    order: Annotated[Order, typer.Option(help="Newest first, or by the score of --probe.")] = "time",
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="How many at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON, one a line.")] = False,
) -> None:
    """Show records."""
    filters = _filters(flagged, probe, model, steering, route, since, until, label, min_score, max_score)
    if order != "time" and probe is None:
        raise ArtefactError("an order by score needs the --probe whose score it is")
    with _store(records) as store:
        found = store.page(filters, order, limit=limit)
    if as_json:
        for record in found.records:
            typer.echo(json.dumps(record))
        return
    _print_table(found.records)
    if found.next is not None:
        Console().print(f"the first {limit}; --limit shows more, --since and --until others", highlight=False)


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.")],
    records: Database = DEFAULT_RECORDS,
    flagged: Flagged = None,
    probe: ProbeName = None,
    model: ModelName = None,
    steering: Steering = None,
    route: Route = None,
    since: Since = None,
    until: Until = None,
    label: Labelled = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
) -> None:
    """Write records to a Parquet file."""
    filters = _filters(flagged, probe, model, steering, route, since, until, label, min_score, max_score)
    with _store(records) as store:
        try:
            n = store.export(filters, out)
        except OSError as error:
            raise ArtefactError(f"{out}: {error.strerror or error}") from error
    Console().print(f"wrote {out}: {n} records", soft_wrap=True, highlight=False)


@app.command()
def trim(
    records: Database = DEFAULT_RECORDS,
    records_days: Annotated[float, typer.Option(help="Days that a record is kept.")] = RecordsConfig.max_days,
    records_mb: Annotated[float, typer.Option(help="MB of records that are kept.")] = RecordsConfig.max_mb,
) -> None:
    """Delete the oldest records until none is too old, and all fit; a running server does so every minute."""
    limits = RecordsConfig(records, records_days, records_mb)
    total = 0
    with _store(records, limits) as store:
        while n := store.trim():
            total += n
    Console().print(f"deleted {total} records", highlight=False)


@contextmanager
def _store(url: str, limits: RecordsConfig | None = None) -> Iterator[RecordStore]:
    limits = limits or RecordsConfig()
    store = RecordStore(url, limits.max_days, limits.max_mb)
    try:
        store.open(create=False)
        yield store
    finally:
        store.close()


def _filters(flagged: bool | None, *others: str | float | None) -> Filters:
    """The options as the HTTP interface takes them."""
    names = ("probe", "model", "steering", "route", "since", "until", "label", "min_score", "max_score")
    given = {name: str(value) for name, value in zip(names, others, strict=True) if value is not None}
    return parse_filters(given if flagged is None else {**given, "flagged": str(flagged).lower()})


def _print_table(records: list[dict[str, Any]]) -> None:
    table = Table("time", "id", "model", "steering", "probe", "score", "flagged", "labels")
    for record in records:
        time = datetime.fromtimestamp(record["time"], UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        first = [time, record["id"], record["model"], record["steering"]]
        for name, score, flagged, labels in _rows(record):
            table.add_row(*map(Text, [*first, name, score, flagged, labels]))
            first = [""] * len(first)
    Console().print(table)


def _rows(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """A row for each probe on each choice; one without a probe for a request that was steered only."""
    rows = []
    for choice in record["choices"]:
        index = choice.get("index", 0)
        for name, probe in choice.get("probes", {}).items():
            of_probe = [entry for entry in record["labels"] if (entry["probe"], entry["choice"]) == (name, index)]
            said = ", ".join(f"{entry['source']}: {str(entry['value']).lower()}" for entry in of_probe)
            score = probe.get("reason", "") if probe["score"] is None else f"{probe['score']:.3f}"
            rows.append((name, score, "yes" if probe["flagged"] else "", said))
    return rows or [(record["error"] or "", "", "", "")]
