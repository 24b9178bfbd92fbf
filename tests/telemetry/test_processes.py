"""Several API servers: whichever is scraped shows what all have counted, and one request behind each count."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from telemetry_support.outcomes import MODEL, REFERENCE, Samples, samples_of

from pilothouse.telemetry.drift import psi

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Server:
    """One process. See telemetry_support/process.py."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "telemetry_support.process"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, *command: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def scrape(self) -> tuple[Samples, dict[str, str]]:
        """The samples, and of the buckets of scores by bound the ids of their exemplars."""
        families = list(text_string_to_metric_families(self.tell("scrape", OPENMETRICS)))  # type: ignore[no-untyped-call]
        exemplars = {
            sample.labels["le"]: sample.exemplar.labels["request_id"]
            for family in families
            for sample in family.samples
            if sample.exemplar and sample.name == "pilothouse_probe_score_bucket"
        }
        return samples_of(families), exemplars

    def end(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(timeout=60)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    made = (Server(tmp_path), Server(tmp_path))
    yield made
    for server in made:
        server.end()


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"pilothouse_{name}", frozenset(labels.items())))


def eventually(server: Server, *ids: str) -> tuple[Samples, dict[str, str]]:
    """What `server` shows once all these ids are exemplars: others' come to be known within a while."""
    for _ in range(1000):
        samples, exemplars = server.scrape()
        if set(ids) <= set(exemplars.values()):
            return samples, exemplars
        time.sleep(0.01)
    raise AssertionError(f"{ids} are not all among {exemplars}")


def test_counts_exemplars_and_drift_are_of_all(servers: tuple[Server, Server], tmp_path: Path) -> None:
    first, second = servers
    (tmp_path / "pilothouse_1.json").write_text('{"exemplars": [["cut of')
    (tmp_path / "pilothouse_2.json").write_text('{"scores": 3}')
    # What the others wait for comes last of each.
    first.tell("records", 5, 1)
    second.tell("records", 7, 2)
    second.tell("observe", "older", 0.12, 1005.0)
    for i in range(6):
        servers[i % 2].tell("observe", f"r{i}", 0.12 * (i + 1), 1000.0 + i)
    first.tell("observe", "newer", 0.12, 1010.0)
    seen = []
    for server in servers:
        samples, exemplars = eventually(server, "newer", *(f"r{i}" for i in range(1, 6)))
        assert exemplars == {
            "0.15": "newer", "0.25": "r1", "0.4": "r2", "0.5": "r3", "0.6": "r4", "0.75": "r5"
        }  # fmt: skip
        scored = {"model_name": MODEL, "probe": "p", "steering": "none"}
        assert value(samples, "probe_score_count", **scored) == 8
        assert value(samples, "probe_score_bucket", **scored, le="0.15") == 3
        assert value(samples, "probe_score_bucket", **scored, le="0.873") == 8
        assert value(samples, "probe_tokens_total", model_name=MODEL, probe="p") == 24
        assert value(samples, "requests_total", model_name=MODEL, route="/v1/completions", steering="none") == 8
        assert value(samples, "records_written_total") == 12
        assert value(samples, "records_queued") == 3
        assert value(samples, "probe_drift_scores", model_name=MODEL, probe="p") == pytest.approx(8, rel=0.01)
        seen.append(value(samples, "probe_drift_psi", model_name=MODEL, probe="p"))
    counts, _ = np.histogram([0.12 * (i + 1) for i in range(6)] + [0.12, 0.12], REFERENCE["edges"])
    assert seen == pytest.approx([psi(REFERENCE["counts"], counts.tolist())] * 2, rel=0.02)


def test_a_change_of_the_registry_is_shown_whole(servers: tuple[Server, Server]) -> None:
    first, second = servers
    for server in servers:
        server.tell("observe", "before", 0.91, 1000.0)
    first.tell("quality", ["p", 0.5, None, 0.25, 3])
    before, _ = second.scrape()
    scored = {"model_name": MODEL, "probe": "p", "steering": "none"}
    assert value(before, "probe_precision", model_name=MODEL, probe="p") == 0.5
    assert value(before, "probe_recall", model_name=MODEL, probe="p") is None
    for server in servers:
        server.tell("register", 0.925, "sha256:2")
    second.tell("quality")
    second.tell("observe", "after", 0.91, 1001.0)
    for server in servers:
        after, _ = server.scrape()
        labels = {"model_name": MODEL, "probe": "p", "layers": "2,3", "aggregate": "max", "alarm": "high"}
        infos = [dict(key[1])["version"] for key in after if key[0] == "pilothouse_probe_info"]
        assert infos == ["sha256:2"]
        assert value(after, "probe_info", **labels, calibration="platt", version="sha256:2") == 1
        assert [dict(key[1])["vector"] for key in after if key[0] == "pilothouse_vector_info"] == ["v"]
        assert [value(after, "probe_score_bucket", **scored, le=le) for le in ("0.9", "0.925", "0.95")] == [0, 1, 3]
        assert value(after, "probe_precision", model_name=MODEL, probe="p") is None
        falls = [key for key, count in before.items() if key[0].endswith(("_bucket", "_total")) and after[key] < count]
        assert falls == []


def test_what_a_killed_server_has_counted_stays(servers: tuple[Server, Server]) -> None:
    first, second = servers
    first.tell("observe", "gone", 0.3, 1000.0)
    eventually(second, "gone")
    first.process.kill()
    first.process.wait()
    second.tell("observe", "here", 0.4, 1001.0)
    samples, exemplars = second.scrape()
    assert exemplars == {"0.3": "gone", "0.4": "here"}
    assert value(samples, "probe_requests_total", model_name=MODEL, probe="p", flagged="false") == 2
