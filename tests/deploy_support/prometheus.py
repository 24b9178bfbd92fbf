"""A real Prometheus: found or fetched, started with the project's rules, and asked."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy_support import boards
from deploy_support.paths import ROOT, RULES

EVERYTHING = ".*"


class Unavailable(Exception):
    """There is no Prometheus here, and none could be fetched."""


def binaries() -> Path:
    """The folder of `prometheus` and `promtool`; Unavailable."""
    done = subprocess.run(
        [ROOT / "requirements" / "prometheus.sh"], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode:
        raise Unavailable(done.stderr.strip())
    return Path(done.stdout.strip())


@dataclass(frozen=True)
class Prometheus:
    """A running one. client: of its address."""

    client: httpx.Client
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        body = answer.json()
        assert body["status"] == "success", (path, parameters, body)
        return body["data"]

    def query(self, text: str) -> list[dict[str, Any]]:
        """The series of now."""
        data = self.get("query", query=text)
        found: list[dict[str, Any]] = data["result"] if data["resultType"] == "vector" else [{"metric": {}, **data}]
        return found

    def numbers(self, text: str) -> list[float]:
        """The values of now that are numbers."""
        values = [float(series["value"][1]) for series in self.query(text)]
        return [value for value in values if value == value]

    def exemplars(self, text: str, seconds: float = 600) -> list[dict[str, Any]]:
        """Of the last while, of all series that the query selects."""
        now = time.time()
        found = self.get("query_exemplars", query=text, start=now - seconds, end=now + 1)
        return [{**exemplar, "series": series["seriesLabels"]} for series in found for exemplar in series["exemplars"]]

    def values(self, selector: str, label: str) -> list[str]:
        """As Grafana's `label_values(selector, label)`."""
        found: list[str] = self.get(f"label/{label}/values", **{"match[]": selector})
        return found

    def variables(self) -> dict[str, str]:
        """A value for each variable of the dashboards: those that choose nothing at first choose everything."""
        found = {"model": EVERYTHING, "probe": EVERYTHING, "steering": EVERYTHING, "vector": EVERYTHING}
        for name, (selector, label) in boards.variables().items():
            if name not in found:
                found[name] = "(" + "|".join(self.values(selector.replace("$model", EVERYTHING), label)) + ")"
        return found

    def alerts(self) -> dict[str, str]:
        """The state of each alerting rule by its name."""
        rules = (rule for group in self.get("rules")["groups"] for rule in group["rules"])
        return {rule["name"]: rule["state"] for rule in rules if rule["type"] == "alerting"}

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {name for name, state in self.alerts().items() if state == "firing"}

    def wait(self, what: Callable[[Prometheus], bool], seconds: float = 30) -> None:
        """Until `what` is so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if what(self):
                return
            time.sleep(0.3)
        raise AssertionError(f"not so after {seconds} s; alerts: {self.alerts()}; log: {self.log.read_text()[-2000:]}")


def hurried(rules: str) -> str:
    """Rules whose alerts fire at once, without the time for which something must be so."""
    return re.sub(r"^ +for: .+\n", "", rules, flags=re.MULTILINE)


@contextmanager
def running(
    folder: Path,
    programs: Path,
    targets: Sequence[str],
    *,
    change_rules: Callable[[str], str] = lambda rules: rules,
    port: int = 0,
    interval: str = "1s",
) -> Iterator[Prometheus]:
    """One that scrapes `targets` (host:port) as the job `pilothouse`, and evaluates rules, each `interval`."""
    (folder / "rules").mkdir(parents=True)
    for path in RULES.glob("*.yml"):
        (folder / "rules" / path.name).write_text(change_rules(path.read_text(encoding="utf-8")), encoding="utf-8")
    listed = ", ".join(f'"{target}"' for target in targets)
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: {interval}, scrape_timeout: {interval}, evaluation_interval: {interval}}}\n"
        "rule_files: [rules/*.yml]\n"
        f"scrape_configs: [{{job_name: pilothouse, static_configs: [{{targets: [{listed}]}}]}}]\n",
        encoding="utf-8",
    )
    port = port or free_port()
    command = [
        str(programs / "prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
    found = Prometheus(client, process, log)
    try:
        _wait_until_ready(found)
        yield found
    finally:
        client.close()
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(folder / "data", ignore_errors=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait_until_ready(prometheus: Prometheus) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and prometheus.process.poll() is None:
        try:
            if prometheus.client.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus did not start: {prometheus.log.read_text()[-3000:]}")
