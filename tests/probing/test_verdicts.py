"""Which labels count, and how files hold them."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pilothouse.core.errors import ArtefactError
from pilothouse.probing.verdicts import Label, load_labels, settle

BASE = Label("r", 1.5, True, "v1", "ann", 100.0)


def label(**changes: Any) -> Label:
    return replace(BASE, **changes)


def verdict(*labels: Label) -> list[int]:
    return [int(value) for value in settle(labels, "v1").values]


def test_a_source_that_labels_again_means_its_newest_label() -> None:
    again = [label(time=200.0, value=False), label(time=100.0)]
    assert verdict(*again) == verdict(*again[::-1]) == [0]
    # At one time, the one that came later.
    assert verdict(label(value=False), label()) == [1]


def test_the_majority_of_sources_decides_and_a_tie_is_left_out() -> None:
    ann, bob, eve = label(), label(source="bob", value=False), label(source="eve", value=False, time=1.0)
    assert verdict(ann, bob, eve) == [0]
    assert verdict(ann, bob, eve, label(source="eve")) == [1]
    assert verdict(ann, bob) == []
    found = settle([ann, bob, label(response_id="s")], "v1")
    assert (found.n_undecided, found.response_ids, dict(found.sources)) == (1, ("s",), {"ann": 1})
    assert found.left_out == ["left out: 1 choice(s) on which as many sources say one thing as the other"]


def test_only_the_version_at_hand_and_what_was_scored_count() -> None:
    other, unscored = label(version="v0", value=False), label(statistic=None, value=False)
    found = settle([label(), other, other, unscored, label(statistic=float("nan"))], "v1")
    assert found.values.tolist() == [1]
    assert (found.n_other_version, found.n_unscored) == (2, 2)
    assert len(found.left_out) == 2


def test_choices_of_one_response_are_told_apart_and_stay_together() -> None:
    found = settle([label(), label(statistic=-2.0), label(response_id="q", value=False)], "v1")
    assert found.statistics.tolist() == [1.5, -2.0, 1.5]
    assert found.of_item[0] == found.of_item[1] != found.of_item[2]
    assert (found.responses_of(1), found.responses_of(0)) == (1, 1)


def test_labels_can_be_chosen_by_time_and_source() -> None:
    labels = [label(time=50.0), label(response_id="s", source="bob"), label(response_id="t", time=150.0)]
    assert settle(labels, "v1", since=100.0).response_ids == ("s", "t")
    assert settle(labels, "v1", since=100.0, sources=["ann", "eve"]).response_ids == ("t",)
    found = settle(labels, "v1")
    assert (found.first, found.last) == ("1970-01-01T00:00:50+00:00", "1970-01-01T00:02:30+00:00")
    none = settle([], "v1")
    assert (none.values.tolist(), none.first, none.responses_of(1)) == ([], None, 0)


ROW: dict[str, Any] = {
    "response_id": "r",
    "statistic": 1.5,
    "value": True,
    "version": "v1",
    "source": "ann",
    "time": 100.0,
}


def test_files_hold_labels_of_one_probe_or_of_several(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "probe": "truth", "time": "1970-01-01T00:01:40Z", "score": 0.8},
        {**ROW, "probe": "lies"},
        {**ROW, "value": None},
        {**ROW, "statistic": None, "value": False, "time": "1970-01-01T00:01:40"},
    ]
    lines = tmp_path / "labels.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    wanted = [BASE, BASE, label(statistic=None, value=False)]
    assert load_labels(lines, "truth") == wanted
    columns = {key: [row.get(key) for row in rows] for key in ("probe", "score", *ROW)}
    columns["time"] = [datetime.fromtimestamp(100, UTC)] * len(rows)
    table = tmp_path / "labels.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), table)
    assert load_labels(table, "truth") == wanted


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("response_id", ""),
        ("statistic", "high"),
        ("value", "true"),
        ("version", 3),
        ("time", "yesterday"),
        ("time", -1.0),
        ("time", 1e300),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, suffix: str, key: str, bad: Any) -> None:
    path = tmp_path / f"labels.{suffix}"
    row = {**ROW, key: bad}
    if suffix == "jsonl":
        path.write_text("\n" + json.dumps(row))
    else:
        pyarrow.parquet.write_table(pyarrow.table({k: [v] for k, v in row.items()}), path)
    with pytest.raises(ArtefactError, match=rf"labels\.{suffix}, (line 2|row 1): {key}"):
        load_labels(path, "truth")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_no_file_of_labels_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_labels(path, "truth")
    path.write_bytes(b"\xff\xfe nothing")
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_labels(path, "truth")


def test_choices_of_one_response_that_scored_alike_are_two() -> None:
    found = settle([label(value=False), label(choice=1)], "v1")
    assert found.values.tolist() == [0, 1]
    assert found.of_item.tolist() == [0, 0]
