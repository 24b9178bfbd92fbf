"""The command line: one boundary where every deliberate error becomes one clear line."""

import sys

import typer
from rich.console import Console

from pilothouse.cli import bench_records, doctor, evaluate, probes, records, saes, serve, vectors
from pilothouse.cli.bench import command
from pilothouse.core.errors import BadRequest, PilothouseError

app = typer.Typer(
    name="pilothouse",
    help="Serve open models on vLLM, steered and read while they serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(vectors.app, name="vectors", help="Make and inspect steering vectors.")
app.add_typer(probes.app, name="probes", help="Make and inspect probes.")
app.add_typer(evaluate.app, name="eval", help="Measure what is claimed of the embedded model.")
app.add_typer(saes.app, name="sae", help="Train, label, inspect and convert sparse autoencoders.")
app.add_typer(records.app, name="records", help="List, export and trim what a server recorded.")
app.command("serve", context_settings=serve.CONTEXT)(serve.serve)
app.command("doctor", context_settings=serve.CONTEXT)(doctor.doctor)
app.command("bench")(command.bench)
app.command("bench-records")(bench_records.bench_records)


def main() -> None:
    """Entry point of the installed command; exit status 1 and one line on any deliberate error."""
    try:
        app()
    except PilothouseError as error:
        where = f" ({error.param})" if isinstance(error, BadRequest) and error.param else ""
        Console(stderr=True).print(f"[bold red]error:[/] {error}{where}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
