"""Labels, and what they say of probes, counted again by hand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from records_support.outcomes import expected, outcome, scored

from pilothouse.core.errors import BadRequest, NotFound
from pilothouse.core.records import ChoiceOutcome, ProbeOutcome
from pilothouse.records.labels import Label, StoredLabel
from pilothouse.records.quality import Labelled
from pilothouse.records.rows import make_row
from pilothouse.records.store import RecordStore

NONE = {(flagged, value): 0 for flagged in (True, False) for value in (True, False)}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def store(url: str) -> Iterator[RecordStore]:
    made = RecordStore(url, clock=Clock())
    made.open()
    yield made
    made.close()


def test_a_source_has_one_label_and_the_last_counts(store: RecordStore) -> None:
    request = scored(1, 0.9, 0.2)
    store.write([make_row(request)])
    name = request.response_id
    store.label(name, Label("risk", False, "checker"))
    store.label(name, Label("risk", True, "me"))
    stored = store.label(name, Label("risk", True, "checker"))
    shown = {"probe": "risk", "choice": 0, "value": True, "source": "checker", "time": 3.0}
    assert stored == StoredLabel(shown, request.model_name, True)
    said = [
        {"probe": "risk", "choice": 0, "value": True, "source": "me", "time": 2.0},
        {"probe": "risk", "choice": 0, "value": True, "source": "checker", "time": 3.0},
    ]
    assert store.find(name) == expected(request, labels=said)
    assert store.quality()[0].counts == {**NONE, (True, True): 1}, "a choice counts once, whoever labelled it"
    store.label(name, Label("risk", False, "me"))
    assert store.quality() == [], "as many say the one as the other"
    store.label(name, Label("risk", False, "third"))
    assert store.quality()[0].counts == {**NONE, (True, False): 1}, "what most say counts"
    assert store.label(name, Label("risk", True, "me", choice=1)).flagged is False
    assert [(row.choice, row.score, row.source, row.value, row.time) for row in store.labelled("risk")] == [
        (0, 0.9, "checker", True, 3.0),
        (0, 0.9, "me", False, 4.0),
        (0, 0.9, "third", False, 5.0),
        (1, 0.2, "me", True, 6.0),
    ]


def test_labels_of_nothing_are_refused(store: RecordStore) -> None:
    nameless = ChoiceOutcome((ProbeOutcome("adhoc", 0.5, None, False, 1), ProbeOutcome("adhoc", 0.6, None, False, 1)))
    store.write([make_row(scored(1, 0.9)), make_row(outcome(2, choices=(nameless,)))])
    with pytest.raises(NotFound):
        store.label("chatcmpl-3", Label("risk", True, "me"))
    for name, label, param in (
        ("chatcmpl-1", Label("truthfulness", True, "me"), "probe"),
        ("chatcmpl-1", Label("risk", True, "me", choice=1), "choice"),
        ("chatcmpl-2", Label("adhoc", True, "me"), "probe"),
    ):
        with pytest.raises(BadRequest) as caught:
            store.label(name, label)
        assert caught.value.param == param
    assert store.quality() == []


def test_quality_is_what_counting_by_hand_says(store: RecordStore) -> None:
    rng = random.Random(5)
    versions = ("sha256:1", "sha256:2")
    edges = [i / 10 for i in range(11)]
    requests, values = [], []
    for i in range(300):
        score = rng.choice(edges) if i % 5 == 0 else rng.random()
        name = rng.choice(("risk", "truthfulness"))
        requests.append(scored(i, score, name=name, version=rng.choice(versions), model_name=rng.choice(("a", "b"))))
        values.append(rng.random() < score)
    store.write([make_row(request) for request in requests])
    for request, value in zip(requests, values, strict=True):
        probe = request.choices[0].probes[0].probe
        store.label(request.response_id, Label(probe, not value, "hasty"))
        store.label(request.response_id, Label(probe, value, "careful"))
        store.label(request.response_id, Label(probe, value, "second"))
    unscored = outcome(999, choices=(ChoiceOutcome((ProbeOutcome("risk", None, None, False, 0, "aborted"),)),))
    store.write([make_row(unscored)])
    store.label(unscored.response_id, Label("risk", True, "careful"))

    found = {(q.model, q.probe, q.version): q for q in store.quality()}
    assert len(found) == 8
    for (model, probe, version), quality in found.items():
        pairs = [
            (p.score or 0.0, p.flagged, value)
            for request, value in zip(requests, values, strict=True)
            for p in request.choices[0].probes
            if (request.model_name, p.probe, p.version) == (model, probe, version)
        ]
        counts = Counter((flagged, value) for _, flagged, value in pairs)
        assert quality.counts == {(f, v): counts[f, v] for f in (True, False) for v in (True, False)}
        assert sum(quality.counts.values()) == len(pairs) > 10
        for i in range(10):
            inside = [(s, v) for s, _, v in pairs if edges[i] <= s < edges[i + 1] or (i == 9 and s == 1)]
            assert quality.bins[i].n == len(inside)
            assert quality.bins[i].n_holds == sum(v for _, v in inside)
            assert quality.bins[i].total == pytest.approx(sum(s for s, _ in inside))
        rows = [row for row in store.labelled(probe, version, model=model) if row.source == "careful"]
        assert sorted((row.score, row.flagged, row.value) for row in rows) == sorted(pairs)


def test_pairs_to_calibrate_on_can_be_of_a_version_and_a_time(store: RecordStore) -> None:
    for i, version in enumerate(("sha256:1", "sha256:2", "sha256:2")):
        store.write([make_row(scored(i, 0.25 * i, version=version, created=10.0 * i, model_name="tiny"))])
        store.label(f"chatcmpl-{i}", Label("risk", i == 1, "me"))
    second, third = (
        Labelled("chatcmpl-1", 0, 2.5, 0.25, False, "sha256:2", True, "me", 2.0),
        Labelled("chatcmpl-2", 0, 5.0, 0.5, True, "sha256:2", False, "me", 3.0),
    )
    assert store.labelled("risk")[1:] == [second, third]
    assert store.labelled("risk", "sha256:2") == [second, third]
    assert store.labelled("risk", "sha256:2", since=3.0) == [third]
    assert store.labelled("risk", since=3.5) == store.labelled("other") == store.labelled("risk", model="none") == []
    assert [(q.version, sum(q.counts.values())) for q in store.quality(since=10.0)] == [("sha256:2", 2)]
