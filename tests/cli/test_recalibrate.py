"""`probes recalibrate` from arguments to a new file, from files and from a record store."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from records_support.outcomes import outcome

from pilothouse.cli.main import main
from pilothouse.core.records import ChoiceOutcome, ProbeOutcome
from pilothouse.probing import Platt, Probe, load_probe, save_probe
from pilothouse.probing.calibration import calibrate
from pilothouse.probing.verdicts import Label
from pilothouse.records.labels import Label as StoreLabel
from pilothouse.records.rows import make_row
from pilothouse.records.store import RecordStore

NOW = datetime.now(UTC)


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    counts = [int(count) for count in np.arange(20)]
    made = Probe(
        name="truth",
        label="true",
        alarm="low",
        aggregate="worst_ema",
        threshold=0.5,
        weights={1: np.ones(4, dtype=np.float32)},
        calibration=Platt(a=2.0, b=1.0),
        card={"reference_histogram": {"edges": np.linspace(0, 1, 21).tolist(), "counts": counts}},
    )
    save_probe(made, tmp_path / "p.safetensors")
    return load_probe(tmp_path / "p.safetensors")


@pytest.fixture
def labels(probe: Probe, tmp_path: Path) -> list[Label]:
    """Two hundred labels, the newest first, by two sources; and their file."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 4, 200)
    values = rng.random(200) < calibrate(Platt(a=0.4, b=-0.4), logits)
    made = [
        Label(
            f"r{i}", float(z), bool(v), probe.version, "ann" if i % 2 else "bob", (NOW - timedelta(hours=i)).timestamp()
        )
        for i, (z, v) in enumerate(zip(logits, values, strict=True))
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps({**asdict(label), "probe": "truth"}) for label in made))
    return made


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pilothouse", "probes", "recalibrate", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


FILES = ("p.safetensors", "--labels", "labels.jsonl")


@pytest.mark.usefixtures("labels")
def test_a_new_file_and_a_table_of_how_much_better_it_is(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "p.safetensors").read_bytes()
    assert run(monkeypatch, *FILES, "--out", "new/p.safetensors", "--json", "new/p.json") == 0
    assert (tmp_path / "p.safetensors").read_bytes() == before
    new = load_probe(tmp_path / "new" / "p.safetensors")
    assert new.name == "truth"
    assert new.version != probe.version
    assert new.card["recalibrated_from"]["version"] == probe.version
    assert new.card["recalibrated_from"]["sources"] == {"ann": 100, "bob": 100}
    assert sum(new.card["reference_histogram"]["counts"]) == sum(range(20))
    shown = capsys.readouterr().out
    assert f"new/p.safetensors: {new.version}" in shown
    assert "200 labelled choices" in shown
    found = json.loads((tmp_path / "new" / "p.json").read_text())
    assert found["version"] == {"before": probe.version, "after": new.version}
    assert len(found["choices"]) == 200
    for name, measure in (("Brier", "brier"), ("log loss", "log_loss"), ("precision", "precision"), ("ECE", "ece")):
        (row,) = [line for line in shown.splitlines() if name in line]
        for side in ("before", "after"):
            assert f"{found['measures'][measure][side]['value']:.3f}" in row
    assert found["measures"]["log_loss"]["after"]["value"] < found["measures"]["log_loss"]["before"]["value"]


@pytest.mark.usefixtures("labels")
def test_labels_are_chosen_by_time_and_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(*options: str) -> int:
        assert run(monkeypatch, *FILES, "--out", "new.safetensors", "--force", *options) == 0
        return int(load_probe(tmp_path / "new.safetensors").card["recalibrated_from"]["n_choices"])

    assert counted() == 200
    assert counted("--source", "ann") == 100
    assert counted("--source", "ann", "--source", "bob") == 200
    # An hour apart, the first one now.
    assert counted("--since", "100h") == 100
    assert counted("--since", (NOW - timedelta(hours=149, minutes=30)).isoformat()) == 150
    assert counted("--since", "1w") == 168


@pytest.mark.usefixtures("labels")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((*FILES, "--out", "p.safetensors", "--force"), "own file"),
        ((*FILES, "--out", "folder/../p.safetensors", "--force"), "own file"),
        ((*FILES, "--out", "link.safetensors", "--force"), "own file"),
        ((*FILES, "--out", "there.safetensors"), "--force"),
        (("p.safetensors", "--out", "new.safetensors"), "either --records URL or --labels FILE"),
        ((*FILES, "--records", "sqlite:///r.db", "--out", "new.safetensors"), "either --records"),
        ((*FILES, "--since", "lately", "--out", "new.safetensors"), "lately"),
        ((*FILES, "--min-labels", "201", "--out", "new.safetensors"), "needs 201"),
        (("absent.safetensors", "--labels", "labels.jsonl", "--out", "new.safetensors"), "absent"),
        (("p.safetensors", "--labels", "absent.jsonl", "--out", "new.safetensors"), "absent"),
    ],
)
def test_refusals_write_nothing(
    options: tuple[str, ...],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.safetensors").symlink_to("p.safetensors")
    (tmp_path / "there.safetensors").write_text("kept")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run(monkeypatch, *options) == 1
    assert reason in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_labels_of_a_record_store(
    labels: list[Label], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'r.sqlite'}"
    store = RecordStore(url)
    store.open()
    for number, label in enumerate(labels):
        version = "sha256:stale" if number < 7 else label.version
        said = ProbeOutcome("truth", 0.5, None, False, 3, version=version, statistic=label.statistic)
        store.write([make_row(outcome(number, response_id=label.response_id, choices=(ChoiceOutcome((said,)),)))])
        store.label(label.response_id, StoreLabel("truth", label.value, label.source))
    store.close()
    options = ("--records", url, "--since", "2020-01-01", "--out", "new.safetensors")
    assert run(monkeypatch, "p.safetensors", *options) == 0
    shown = capsys.readouterr().out
    assert "left out: 7 label(s) of another version" in shown
    assert "replace p.safetensors by it" in shown
    assert load_probe(tmp_path / "new.safetensors").card["recalibrated_from"]["n_choices"] == 193


def test_a_store_that_is_not_there_is_not_made(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--records", f"sqlite:///{tmp_path / 'absent.sqlite'}", "--out", "new.safetensors")
    assert run(monkeypatch, "p.safetensors", *options) == 1
    assert "holds no records" in capsys.readouterr().err
    assert not (tmp_path / "absent.sqlite").exists()
