"""`pilothouse probes recalibrate`: a new calibration and threshold from labelled responses, as a new file."""

import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pilothouse.cli.source import Out, write_json
from pilothouse.core.errors import StartupError
from pilothouse.probing import LabelledScore, Proposal, load_labels, load_probe, recalibrate, save_probe
from pilothouse.probing.comparison import Measured
from pilothouse.probing.recalibration import MIN_LABELS, Kind
from pilothouse.probing.verdicts import seconds

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NAMES = {
    "brier": "Brier",
    "log_loss": "log loss",
    "ece": "ECE",
    "precision": "precision",
    "recall": "recall",
    "flagged": "flagged",
}


def recalibrate_probe(
    probe_file: Annotated[Path, typer.Argument(help="The probe that the server serves (.safetensors).")],
    out: Out,
    records: Annotated[
        str | None, typer.Option(metavar="URL", help="The record store, as `pilothouse serve --records` takes it.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of a store: JSON lines or .parquet with response_id, statistic, value, version, source, time "
            "and, where there are several, probe.",
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only labels since then: a date and time in ISO 8601, or 7d, 12h, 30m ago.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Only labels of this source; may be given several times.")
    ] = None,
    min_labels: Annotated[int, typer.Option(min=10, help="Refuse to go by fewer labelled choices.")] = MIN_LABELS,
    kind: Annotated[
        Kind, typer.Option(help="How logits become probabilities; auto: what is likelier on held-out responses.")
    ] = "auto",
    threshold: Annotated[
        float | None, typer.Option(help="Score beyond which a request is flagged; else as training chose it.")
    ] = None,
    fpr: Annotated[
        float | None, typer.Option(help="Choose the threshold that flags this share of benign choices, such as 0.01.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything, every choice included.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the file at --out, if there is one.")] = False,
    seed: int = 0,
) -> None:
    """Propose a calibration and a threshold from labelled responses: a new file, and how much better it is.

    Brier, log loss, ECE, precision and recall of the alarm's case before and after, on responses that had no part in
    the fit, with 95% bootstrap intervals. The probe itself is left as it is.
    """
    _check_out(probe_file, out, force)
    probe = load_probe(probe_file)
    start = None if since is None else _time(since)
    proposal = recalibrate(
        probe,
        _labels(records, labels, probe.name, start),
        kind=kind,
        min_labels=min_labels,
        threshold=threshold,
        fpr=fpr,
        since=start,
        sources=source or (),
        seed=seed,
    )
    save_probe(proposal.new, out)
    if json_file is not None:
        write_json(proposal.as_json, json_file)
    _print(proposal, probe_file, out)


def _check_out(probe_file: Path, out: Path, force: bool) -> None:
    """StartupError when `out` is the probe itself, or some other file that is not to be replaced."""
    if out.resolve() == probe_file.resolve() or (out.exists() and probe_file.exists() and out.samefile(probe_file)):
        raise StartupError("--out is the probe's own file, which stays as it is: name a new one")
    if out.exists() and not force:
        raise StartupError(f"{out} is there already: name a new file, or give --force")


def _time(text: str) -> float:
    """Seconds since 1970 of a time as `--since` takes it."""
    if ago := re.fullmatch(r"(\d{1,9})([smhdw])", text):
        return time.time() - int(ago[1]) * _UNITS[ago[2]]
    try:
        return float(seconds(text))
    except ValueError:
        raise StartupError(f"--since takes a date such as 2026-05-01 or a time ago such as 7d, not {text!r}") from None


def _labels(records: str | None, labels: Path | None, probe: str, since: float | None) -> Sequence[LabelledScore]:
    match records, labels:
        case str(), None:
            return labels_in_store(records, probe, since)
        case None, Path():
            return load_labels(labels, probe)
        case _:
            raise StartupError("give either --records URL or --labels FILE")


def labels_in_store(url: str, probe: str, since: float | None) -> list[LabelledScore]:
    """The labels of a probe in a record store, of whichever version."""
    # A database's driver is slow to import, and labels in files need none.
    from pilothouse.records.store import RecordStore

    store = RecordStore(url)
    with closing(store):
        store.open(create=False)
        return list(store.labelled(probe, since=since))


def _print(proposal: Proposal, probe_file: Path, out: Path) -> None:
    console, verdicts = Console(), proposal.verdicts
    n_holds = int(verdicts.values.sum())
    counts = f"{len(verdicts.values)} labelled choices, {n_holds} of which {proposal.old.label!r} holds"
    of_sources = ", ".join(f"{name or 'unnamed'} {count}" for name, count in verdicts.sources.items())
    _line(
        console, f"{proposal.old.name}: {counts}; {verdicts.first} to {verdicts.last}; labels by source: {of_sources}"
    )
    table = Table("held out", "before", "after [95%]", "after - before [95%]")
    for name, found in proposal.compared.items():
        before = "-" if found.before.value is None else f"{found.before.value:.3f}"
        table.add_row(_NAMES[name], before, *(Text(_shown(side)) for side in (found.after, found.difference)))
    table.add_row("threshold", f"{proposal.old.threshold:.3f}", f"{proposal.new.threshold:.3f}", "")
    kind = proposal.old.calibration.kind if proposal.old.calibration is not None else "none"
    table.add_row("calibration", kind, proposal.kind, "")
    console.print(table)
    for note in proposal.notes:
        _line(console, note)
    _line(console, f"wrote {out}: {proposal.new.version}")
    if out.parent.resolve() == probe_file.parent.resolve():
        _line(
            console, f"a server takes one file a name: replace {probe_file.name} by it before it reads the folder again"
        )


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _shown(measured: Measured) -> str:
    if measured.value is None:
        return "-"
    if measured.interval is None:
        return f"{measured.value:.3f}"
    return f"{measured.value:.3f} [{measured.interval.low:.3f}, {measured.interval.high:.3f}]"
