"""Evaluations on a source with a planted direction, against scikit-learn and against what they must notice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from pilothouse.core.errors import ArtefactError
from pilothouse.probing import Evaluation, LabelledItem, Probe, evaluate_probe, score_items, train_probe, write_card
from pilothouse.probing.evaluation import Part
from pilothouse.probing.report import summary

MakeSource = Callable[..., Any]
D = 6
SIZES = {"train": 120, "calibrate": 80, "eval": 80}


def axis(size: float) -> np.ndarray:
    row = np.zeros(D, dtype=np.float32)
    row[1] = size
    return row


def statements(mark: Callable[[int], str] = lambda i: "+" if i % 2 else "-") -> list[LabelledItem]:
    """Facts stated truly and falsely, of four topics; what begins an item says which, to the stream or to a reader."""
    return [
        LabelledItem.model_validate(
            {
                "text": f"{mark(i)}item {split}{i}",
                "label": i % 2,
                "topic": f"t{(i // 2) % 4}",
                "bucket": "rare" if (i // 2) % 5 == 0 else "common",
                "group": f"{split}{i // 2}",
                "split": split,
            }
        )
        for split, n in SIZES.items()
        for i in range(n)
    ]


@pytest.fixture
def source(make_source: MakeSource) -> Any:
    return make_source({2: axis(1.5)})


def trained(source: Any, items: list[LabelledItem], **changes: Any) -> Probe:
    settings: dict[str, Any] = {"name": "p", "label": "true", "alarm": "low", "layers": [2], "method": "logistic"}
    return train_probe(source, items, **{**settings, **changes})


@pytest.fixture
def judged(source: Any) -> tuple[Probe, Evaluation]:
    items = statements()
    probe = trained(source, items)
    return probe, evaluate_probe(source, probe, items)


def test_the_figures_are_scikit_learns_on_the_raw_items(judged: tuple[Probe, Evaluation]) -> None:
    probe, evaluation = judged
    labels = np.array([item.label for item in evaluation.items])
    scores = np.array([item.score for item in evaluation.items])
    metrics = evaluation.metrics
    assert len(scores) == SIZES["eval"]
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["auroc"] == pytest.approx(probe.card["metrics"]["auroc"])
    assert metrics["brier"] == pytest.approx(brier_score_loss(labels, scores))
    rates, recalls, _ = roc_curve(1 - labels, -scores, drop_intermediate=False)
    for rate in ("0.01", "0.1"):
        assert metrics["recall_at_fpr"][rate]["recall"] == pytest.approx(recalls[rates <= float(rate)].max())
    interval = metrics["auroc_interval"]
    assert interval["low"] < metrics["auroc"] < interval["high"]
    assert (interval["unit"], interval["n_units"]) == ("group", 40)
    assert metrics["ece_bins"] == {"kind": "equal mass", "n": 8}
    assert sum(row["n"] for row in metrics["reliability"]) == 80
    own = metrics["at_threshold"]
    assert own["recall"] == pytest.approx(np.mean(scores[labels == 0] < 0.5))
    assert own["fpr"] == pytest.approx(np.mean(scores[labels == 1] < 0.5))


def test_figures_within_a_bucket_and_a_topic_are_of_its_items_alone(judged: tuple[Probe, Evaluation]) -> None:
    evaluation = judged[1]
    for key, table in (("bucket", "by_bucket"), ("topic", "by_topic")):
        for name, row in evaluation.metrics[table].items():
            mine = [item for item in evaluation.items if getattr(item, key) == name]
            expected = roc_auc_score([item.label for item in mine], [item.score for item in mine])
            assert (row["n"], row["auroc"]) == (len(mine), pytest.approx(expected))
    rare = evaluation.metrics["by_bucket"]["rare"]
    assert rare["n"] == 16
    assert rare["auroc_interval"]["n_units"] == 8


def test_the_cards_thresholds_are_judged_on_items_that_did_not_choose_them(judged: tuple[Probe, Evaluation]) -> None:
    probe, evaluation = judged
    table = probe.card["metrics"]["thresholds"]
    # Forty benign items calibrate: enough for 5%, not for 1%.
    assert table["0.01"]["threshold"] is None
    assert set(evaluation.metrics["at_card_thresholds"]) == {"0.05"}
    row = evaluation.metrics["at_card_thresholds"]["0.05"]
    assert row["threshold"] == table["0.05"]["threshold"]
    benign = [item.score for item in evaluation.items if item.label == 1]
    assert row["fpr"] == pytest.approx(np.mean(np.array(benign) < row["threshold"]))


def test_shuffled_labels_and_words_alone_teach_nothing(judged: tuple[Probe, Evaluation]) -> None:
    metrics = judged[1].metrics
    assert metrics["auroc"] > 0.85
    assert len(metrics["control_aurocs"]) == 5
    assert 0.35 < metrics["control_auroc"] < 0.65
    assert metrics["selectivity"] == pytest.approx(metrics["auroc"] - metrics["control_auroc"])
    for item in judged[1].items:
        assert {reading.label for reading in item.controls} <= {0, 1}


def test_a_corpus_that_leaks_its_answer_is_given_away_by_the_text_baseline(source: Any) -> None:
    items = statements(lambda i: "truly " if i % 2 else "falsely ")
    marked = statements()
    probe = trained(source, marked)
    leaking = evaluate_probe(source, probe, items, split="eval")
    assert leaking.metrics["text_baseline_auroc"] == 1.0
    assert 0.3 < leaking.metrics["auroc"] < 0.7


def test_held_out_topics_are_judged_by_probes_that_never_saw_them(make_source: MakeSource) -> None:
    # Topic t0 has the mark's meaning turned over: who trained on it knows, who did not is wrong about all of it.
    source = make_source({2: axis(3.0)})
    stream = source.stream

    def turned(ids: Any, layer: int) -> Any:
        rows = stream(ids, layer)
        rows[1:, 4] += 30.0 * (ord("#") in ids)
        return rows

    source.stream = turned
    plain = statements()
    items = [
        item.model_copy(update={"text": f"{'-' if item.label else '+'}#{(item.text or '')[1:]}"})
        if item.topic == "t0"
        else item
        for item in plain
    ]
    probe = trained(source, items)
    held_out = evaluate_probe(source, probe, items).metrics["held_out_topic"]
    assert set(held_out["topics"]) == {"t0", "t1", "t2", "t3"}
    assert held_out["topics"]["t0"] < 0.2
    assert held_out["topics"]["t1"] > 0.8
    assert held_out["auroc"] == pytest.approx(np.mean(list(held_out["topics"].values())))


def test_without_named_splits_the_training_is_asked_who_was_held_back(source: Any) -> None:
    items = [item.model_copy(update={"split": None}) for item in statements()]
    probe = trained(source, items, seed=3)
    evaluation = evaluate_probe(source, probe, items)
    assert len(evaluation.items) == probe.card["metrics"]["n"]["eval"]
    assert evaluation.metrics["auroc"] == pytest.approx(probe.card["metrics"]["auroc"])
    assert evaluation.metrics["control_auroc"] == pytest.approx(probe.card["metrics"]["control_auroc"])
    assert evaluation.seed == 3
    with pytest.raises(ArtefactError, match="no item is of the eval split"):
        evaluate_probe(source, probe, items[:-1])


def test_everything_is_judged_when_asked_for_and_what_is_missing_is_said(source: Any) -> None:
    items = statements()
    probe = trained(source, items)
    part: Part = "all"
    evaluation = evaluate_probe(source, probe, items, split=part)
    assert [item.split for item in evaluation.items] == [item.split for item in items]
    assert evaluation.metrics["control_auroc"] is None
    assert evaluation.metrics["text_baseline_auroc"] is None
    assert len(evaluation.notes) == 2


def test_a_foreign_probe_has_no_controls_and_the_card_says_so(source: Any) -> None:
    items = statements()
    foreign = replace(trained(source, items), card={"metrics": "none"})
    evaluation = evaluate_probe(source, foreign, items)
    assert any("does not say how the probe was trained" in note for note in evaluation.notes)
    assert evaluation.metrics["auroc"] > 0.8
    assert evaluation.metrics["at_card_thresholds"] == {}
    assert evaluation.metrics["text_baseline_auroc"] is not None


def test_judged_items_of_one_label_are_refused(source: Any) -> None:
    items = statements()
    probe = trained(source, items)
    only_true = [item for item in items if item.split != "eval" or item.label]
    with pytest.raises(ArtefactError, match="all of one label"):
        evaluate_probe(source, probe, only_true)


def test_chats_are_judged_by_the_worst_of_their_answer_beside_their_prompts_end(make_source: MakeSource) -> None:
    source = make_source({2: axis(3.0)})
    items = [
        LabelledItem.model_validate(
            {
                "messages": [
                    {"role": "user", "content": f"{split}{i}"},
                    {"role": "assistant", "content": f"{'+' if i % 2 else '-'}answer"},
                ],
                "label": i % 2,
                "split": split,
            }
        )
        for split, n in SIZES.items()
        for i in range(n)
    ]
    probe = trained(source, items, alarm="high")
    evaluation = evaluate_probe(source, probe, items)
    assert (evaluation.aggregate, probe.card["token"]) == ("worst_ema", "online")
    assert evaluation.metrics["auroc"] > 0.95
    # Before the answer there is nothing to know.
    assert 0.3 < evaluation.metrics["prompt_end_auroc"] < 0.7
    assert evaluation.metrics["control_auroc"] is not None
    first = evaluation.items[0]
    ids = source.encode([message.model_dump() for message in items[-80].messages or ()])
    logits = probe.logits(source.stream(ids, 2) @ probe.direction.layers[2])
    answer = logits[len(ids) - 2 - len("-answer") : len(ids) - 2]
    average = float(answer[0])
    worst = average
    for logit in answer[1:]:
        average = (average + float(logit)) / 2
        worst = max(worst, average)
    assert first.logit == pytest.approx(worst, abs=1e-5)
    assert first.prompt_end == pytest.approx(float(logits[len(ids) - 3 - len("-answer")]), abs=1e-5)


def test_every_item_is_scored_with_the_split_that_it_had(source: Any) -> None:
    items = [item.model_copy(update={"split": None}) for item in statements()]
    probe = trained(source, items)
    rows = score_items(source, probe, items)
    sizes = {name: sum(row["split"] == name for row in rows) for name in ("train", "select", "calibrate", "eval")}
    assert sizes == probe.card["metrics"]["n"]
    judged = [row for row in rows if row["split"] == "eval"]
    area = roc_auc_score([row["label"] for row in judged], [row["score"] for row in judged])
    assert area == pytest.approx(probe.card["metrics"]["auroc"])
    assert [row["id"] for row in rows[:2]] == ["0", "1"]
    assert [row["label"] for row in rows] == [item.label for item in items]


def test_the_card_is_pictures_a_page_and_markdown(judged: tuple[Probe, Evaluation], tmp_path: Path) -> None:
    evaluation = replace(judged[1], notes=("a <note>",))
    written = write_card(evaluation, tmp_path / "card")
    assert {path.name for path in written} == {"reliability.png", "roc.png", "scores.png", "card.html", "card.md"}
    for name in ("reliability", "roc", "scores"):
        assert (tmp_path / "card" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    page, text = ((tmp_path / "card" / name).read_text() for name in ("card.html", "card.md"))
    assert page.count("data:image/png;base64,") == 3
    assert "a &lt;note&gt;" in page
    assert f"| AUROC | {evaluation.metrics['auroc']:.4f} (95% bootstrap interval" in text
    assert "40 groups drawn" in text
    assert "![reliability](reliability.png)" in text
    names = {name for name, _ in summary(evaluation)}
    wanted = {"recall at 1% FPR", "recall at 10% FPR", "Brier", "ECE, 8 bins of equal mass", "AUROC, shuffled labels"}
    assert wanted | {"AUROC, text only", "AUROC, topic held out", "AUROC, bucket rare"} <= names


def test_a_topic_cannot_break_the_tables(judged: tuple[Probe, Evaluation], tmp_path: Path) -> None:
    items = tuple(replace(item, topic="a|b\n<b>") for item in judged[1].items)
    write_card(replace(judged[1], items=items), tmp_path)
    row = next(line for line in (tmp_path / "card.md").read_text().splitlines() if "AUROC, topic a" in line)
    assert row.startswith("| AUROC, topic a\\|b <b> | ")
    assert "<b>" not in (tmp_path / "card.html").read_text()


def test_the_json_holds_the_raw_items(judged: tuple[Probe, Evaluation]) -> None:
    found = json.loads(json.dumps(judged[1].as_json, allow_nan=False, default=vars))
    assert len(found["items"]) == 80
    assert {"id", "split", "label", "score", "logit", "text", "bucket", "group"} <= set(found["items"][0])
    assert found["metrics"]["auroc"] == judged[1].metrics["auroc"]
