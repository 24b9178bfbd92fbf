"""A live server under mixed traffic, scraped by a real Prometheus: what every panel, exemplar and alert says.

make dashboards-demo                 a table, then everything ends
make dashboards-demo ARGS=--keep     everything goes on until it is interrupted
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from rich.console import Console
from rich.table import Table
from serve_support.server import Server, serving

from deploy_support.exporter import Quiet
from deploy_support.prometheus import Prometheus, Unavailable, binaries, hurried, running
from deploy_support.report import Answer, ask_all, exemplars_of_all
from deploy_support.traffic import ADMIN, FABLES, KINDS, LIES, Traffic
from pilothouse.harbor.paths import monitors_file, presets_file, saes_dir

DEFAULT_PROBES = "hallucination,asked-to-lie,cheerful-feature"
ROUNDS = 12
"""How often each kind of request is sent, in each part of the demonstration."""
MANY = 8
"""How many times as often what the model makes up, so that it is too much in all."""


@dataclass(frozen=True)
class Demo:
    """What runs."""

    server: Server
    prometheus: Prometheus
    traffic: Traffic

    def records_found(self, exemplars: list[dict[str, Any]]) -> int:
        """How many of the requests of these exemplars the server has a record of."""
        found = [self.server.get(f"/v1/probes/results/{name}", headers=ADMIN) for name in requests_of(exemplars)]
        return sum(answer.status_code == 200 for answer in found)


@contextmanager
def demonstrating(
    folder: Path, programs: Path, change_rules: Callable[[str], str] = hurried, port: int = 0
) -> Iterator[Demo]:
    """Harbor with its vectors, presets, monitors and probes, something that takes its spans, and Prometheus."""
    with ExitStack() as stack:
        (folder / "server").mkdir()
        options = ["--saes", str(saes_dir()), "--presets", str(presets_file()), "--monitors", str(monitors_file())]
        options += ["--default-probes", DEFAULT_PROBES, "--request-log", str(folder / "requests.jsonl")]
        options += ["--otlp-endpoint", stack.enter_context(_collector())]
        server = stack.enter_context(serving(folder / "server", *options))
        target = server.url.removeprefix("http://")
        prometheus = stack.enter_context(
            running(folder / "prometheus", programs, [target], change_rules=change_rules, port=port)
        )
        yield Demo(server, prometheus, Traffic(server))


@contextmanager
def _collector() -> Iterator[str]:
    """An address that takes whatever is posted to it."""

    def take(environment: dict[str, Any], start: Any) -> list[bytes]:
        environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        start("200 OK", [("Content-Type", "application/x-protobuf")])
        return [b""]

    server = make_server("127.0.0.1", 0, take, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def requests_of(exemplars: list[dict[str, Any]]) -> set[str]:
    """The requests that exemplars name."""
    return {exemplar["labels"]["request_id"] for exemplar in exemplars}


def show(console: Console, demo: Demo, answers: list[Answer]) -> None:
    """A row for each query, one for each panel with exemplars, one for each alert."""
    table = Table("panel", "query", "series", "for instance", title="What the panels say")
    for answer in answers:
        numbers = answer.numbers
        example = f"{numbers[0]:.4g}" if numbers else "[red]nothing[/red]"
        table.add_row(f"{answer.query.board}: {answer.query.panel}", answer.query.ref, str(len(numbers)), example)
    console.print(table)
    table = Table("panel", "exemplars", "requests", "with a record", title="Exemplars")
    for name, exemplars in exemplars_of_all(demo.prometheus).items():
        table.add_row(name, str(len(exemplars)), str(len(requests_of(exemplars))), str(demo.records_found(exemplars)))
    console.print(table)
    table = Table("alert", "state", title="Alerts, which do not wait here")
    for name, state in demo.prometheus.alerts().items():
        table.add_row(name, state)
    console.print(table)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="go on until interrupted")
    parser.add_argument("--port", type=int, default=0, help="Prometheus's port; a free one")
    arguments = parser.parse_args()
    console = Console()
    try:
        programs = binaries()
    except Unavailable as missing:
        raise SystemExit(str(missing)) from None
    with tempfile.TemporaryDirectory() as name:
        console.print("Starting the server; this takes a minute.")
        with demonstrating(Path(name), programs, port=arguments.port) as demo:
            demo.traffic.send(KINDS | LIES, ROUNDS)
            demo.traffic.send(FABLES, MANY * ROUNDS)
            demo.traffic.label(ROUNDS)
            demo.traffic.send(KINDS | LIES, 2)
            console.print(f"Sent: {dict(demo.traffic.sent)}; other than 200: {dict(demo.traffic.failed) or 'none'}")
            console.print(f"Flagged, where not streamed: {dict(+demo.traffic.flagged)}")
            show(console, demo, ask_all(demo.prometheus))
            console.print(f"Server {demo.server.url}, Prometheus {demo.prometheus.client.base_url}")
            with suppress(KeyboardInterrupt):
                while arguments.keep:
                    demo.traffic.send(KINDS | LIES | FABLES, 1)


if __name__ == "__main__":
    main()
