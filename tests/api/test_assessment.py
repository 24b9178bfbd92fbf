"""How good labels say a probe is: gauges that follow every label, and other servers' too, against counting by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_support.artefacts import RISK, RISK_ROWS, artefact, write_all
from api_support.client import Client, connect
from api_support.fake_engine import FakeServer

from pilothouse.api.assessment import assess
from pilothouse.core.config import RecordsConfig

RESULTS = "/v1/probes/results"
N = 24


def serve(folder: Path, database: Path) -> FakeServer:
    folder.mkdir()
    return FakeServer(write_all(folder, admin_key=None, records=RecordsConfig(f"sqlite:///{database}")))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[FakeServer]]:
    """Two that share a database."""
    made = [serve(tmp_path / name, tmp_path / "records.sqlite") for name in ("one", "other")]
    yield made
    for server in made:
        server.app.state.pilothouse.records.writer.close()


def gauge(server: FakeServer, name: str) -> float | None:
    state = server.app.state.pilothouse
    found = [
        sample.value
        for family in state.metrics.collect()
        for sample in family.samples
        if sample.name == f"pilothouse_probe_{name}" and sample.labels["probe"] == "risk"
    ]
    return found[0] if found else None


async def test_gauges_follow_the_labels_of_the_present_version(servers: list[FakeServer]) -> None:
    one, other = servers
    said: list[tuple[float, bool, bool]] = []
    async with connect(one) as http:
        client = Client(http)
        for number in range(N):
            choice = await client.choice(user=str(number), probes=["risk"], max_tokens=2 + number % 5, seed=number)
            shown, value = choice["probes"]["risk"], number % 3 == 0
            answer = await http.post(
                f"{RESULTS}/chatcmpl-{number}/label", json={"probe": "risk", "value": value, "source": "me"}
            )
            assert answer.status_code == 200, answer.text
            said.append((shown["score"], shown["flagged"], value))
        caught = sum(flagged and value for _, flagged, value in said)
        bins = [[(s, v) for s, _, v in said if min(int(s * 10), 9) == i] for i in range(10)]
        error = sum(abs(sum(s for s, _ in one) - sum(v for _, v in one)) for one in bins) / N
        assert 0 < caught < sum(flagged for _, flagged, _ in said) < N
        assert gauge(one, "labelled") == N
        assert gauge(one, "precision") == pytest.approx(caught / sum(flagged for _, flagged, _ in said))
        assert gauge(one, "recall") == pytest.approx(caught / sum(value for *_, value in said))
        assert gauge(one, "calibration_error") == pytest.approx(error)

        # The other has taken no label; it finds them in the database that both share.
        state = other.app.state.pilothouse
        assert gauge(other, "labelled") is None
        assess(state.records.store, state.registry, state.metrics)
        assert gauge(other, "precision") == gauge(one, "precision")

        # Labels say nothing of another probe of the same name.
        changed = artefact("probe", {**RISK, "threshold": 0.7}, RISK_ROWS)
        state = one.app.state.pilothouse
        path = Path(state.registry._config.probes[0]) / "risk.safetensors"
        path.write_bytes(changed)
        state.registry.reload()
        assess(state.records.store, state.registry, state.metrics)
        assert gauge(one, "labelled") is None
