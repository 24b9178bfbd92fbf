from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.probing import LabelledItem, Platt, Probe, load_probe, save_probe, train_probe
from pilothouse.probing.fitting import Standardiser, fit_direction
from pilothouse.probing.metrics import auroc
from pilothouse.probing.splits import split_items
from pilothouse.probing.training import ONLINE_ROUNDS


def f32(numbers: Any) -> Float32:
    return np.array(numbers, dtype=np.float32)


MakeSource = Callable[..., Any]
D = 12


def direction(layer: int, size: float) -> Float32:
    row = np.random.default_rng(layer).standard_normal(D)
    return (size * row / np.linalg.norm(row)).astype(np.float32)


@pytest.fixture
def source(make_source: MakeSource) -> Any:
    """Layer 4 knows the mark well, layer 2 a little, layer 6 not at all."""
    return make_source({2: direction(2, 0.6), 4: direction(4, 2.5), 6: direction(6, 0.0)})


def items(n: int = 200, **fields: Any) -> list[LabelledItem]:
    """Statements of both labels; those of two splits never share their words."""
    what = fields.get("split") or "statement"
    return [LabelledItem(text=f"{'+' if i % 2 else '-'}{what} {i}", label=i % 2, **fields) for i in range(n)]  # type: ignore[arg-type]


def train(source: Any, given: list[LabelledItem], **changes: Any) -> Probe:
    settings: dict[str, Any] = {"name": "p", "label": "true", "alarm": "low", "layers": [4], "method": "logistic"}
    return train_probe(source, given, **{**settings, **changes})


def cosine(left: Float32, right: Float32) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


@pytest.mark.parametrize("method", ["mass_mean", "logistic"])
@pytest.mark.parametrize("token", ["last", "mean"])
def test_a_planted_direction_is_found_and_read_well(source: Any, method: str, token: str) -> None:
    probe = train(source, items(), method=method, token=token)
    # Averaging leaves so little noise that standardising bends the direction more.
    assert cosine(probe.direction.layers[4], direction(4, 1)) > {"last": 0.9, "mean": 0.6}[token]
    metrics = probe.card["metrics"]
    assert metrics["auroc"] > 0.98
    assert metrics["accuracy"] > 0.9
    assert 0.35 < metrics["control_auroc"] < 0.65
    assert metrics["n"] == {"train": 128, "select": 0, "calibrate": 40, "eval": 32}


@pytest.mark.parametrize("aggregate", ["last", "mean", "min", "max", "worst_ema", "worst_rolling", "prompt_end"])
def test_scores_are_calibrated_for_the_aggregate(source: Any, aggregate: str) -> None:
    probe = train(source, items(), aggregate=aggregate)
    right = 0
    for i, fresh in enumerate(LabelledItem(text=f"{mark}fresh {k}", label=0) for k in range(50) for mark in "-+"):
        ids = source.encode(fresh.text)
        logits = probe.logits(source.stream(ids, 4) @ probe.direction.layers[4])
        score = probe.score(probe.stats(logits[1:], float(logits[-1])))
        assert score is not None
        right += (score > 0.5) == bool(i % 2)
    assert right >= 90


def test_the_metrics_are_those_of_the_eval_split(source: Any) -> None:
    given = items(120, split="train") + items(60, split="calibrate") + items(50, split="eval")
    probe = train(source, given, layers=[2, 4])
    scores = []
    for item in given[-50:]:
        ids = source.encode(item.text)
        logit = probe.bias
        for layer in (2, 4):
            row = source.stream(ids, layer)[-1].astype(np.float64)
            logit += (row - probe.mean[layer]) / probe.std[layer] @ probe.weights[layer]
        assert isinstance(probe.calibration, Platt)
        scores.append(1 / (1 + np.exp(-(probe.calibration.a * logit + probe.calibration.b))))
    truth = np.array([item.label for item in given[-50:]])
    assert probe.card["metrics"]["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert probe.card["metrics"]["accuracy"] == pytest.approx(np.mean((np.array(scores) > 0.5) == truth))
    counts, edges = np.histogram(scores, bins=20, range=(0, 1))
    assert probe.card["reference_histogram"] == {"edges": edges.tolist(), "counts": counts.tolist()}
    assert probe.card["metrics"]["n"]["eval"] == 50


def test_logistic_regression_is_scikit_learns_on_standardised_streams(source: Any) -> None:
    given = items(100, split="train") + items(40, split="calibrate") + items(40, split="eval")
    probe = train(source, given, layers=[2, 4])
    X = np.array([[source.stream(source.encode(item.text), layer)[-1] for layer in (2, 4)] for item in given[:100]])
    flat = X.reshape(100, 2 * D).astype(np.float64)
    labels = [item.label for item in given[:100]]
    scaled = (flat - flat.mean(0)) / flat.std(0)
    oracles = {C: LogisticRegression(C=C, max_iter=10_000) for C in (0.001, 0.01, 0.1, 1.0)}
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    likelihood = {
        C: cross_val_score(oracle, scaled, labels, cv=folds, scoring="neg_log_loss").mean()
        for C, oracle in oracles.items()
    }
    oracle = oracles[max(likelihood, key=lambda C: likelihood[C])].fit(scaled, labels)
    np.testing.assert_allclose(np.concatenate([probe.weights[2], probe.weights[4]]), oracle.coef_[0], atol=1e-3)
    assert probe.bias == pytest.approx(oracle.intercept_[0], abs=1e-3)
    np.testing.assert_allclose(probe.mean[4], flat[:, D:].mean(0), rtol=1e-5)
    np.testing.assert_allclose(probe.std[4], flat[:, D:].std(0), rtol=1e-5)


def test_what_cannot_be_learned_is_penalised() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(200, 100)), rng.integers(0, 2, size=200)
    unpenalised = LogisticRegression(C=1.0, max_iter=10_000).fit(x, labels).coef_[0]
    found = fit_direction("logistic", x, labels, [None] * 200).weight
    assert np.linalg.norm(found) < 0.1 * np.linalg.norm(unpenalised)


def test_a_class_with_a_single_item_is_fitted_all_the_same() -> None:
    x = np.array([[0.0], [0.1], [3.0]])
    assert fit_direction("logistic", x, np.array([0, 0, 1]), [None] * 3).weight[0] > 0


def test_mass_mean_is_the_difference_of_class_means(source: Any) -> None:
    given = items(100, split="train") + items(40, split="calibrate") + items(40, split="eval")
    probe = train(source, given, method="mass_mean")
    X = np.array([source.stream(source.encode(item.text), 4)[-1] for item in given[:100]], dtype=np.float64)
    labels = np.array([item.label for item in given[:100]])
    theta = (X[labels == 1].mean(0) - X[labels == 0].mean(0)) / X.std(0)
    ratio = probe.weights[4] / theta
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    assert ratio[0] > 0
    # Its scale makes it a logit already: calibrating it again changes next to nothing.
    assert isinstance(probe.token_calibration, Platt)
    assert probe.token_calibration.a == pytest.approx(1, abs=1e-3)
    assert probe.token_calibration.b == pytest.approx(0, abs=1e-3)


def test_topics_are_centred_on_their_own() -> None:
    # Topic b is shifted along the second axis and holds most of the positive items.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 0, 1], [45, 5, 5, 45])
    topics = ["a"] * 50 + ["b"] * 50
    x = 0.01 * rng.standard_normal((100, 2))
    x[:, 0] += labels
    x[50:, 1] += 10
    alone = fit_direction("mass_mean", x, labels, [None] * 100).weight
    centred = fit_direction("mass_mean", x, labels, topics).weight
    assert abs(alone[1]) > 5
    assert abs(centred[1]) < 0.1 < centred[0]


def test_without_layers_the_best_one_is_chosen(source: Any) -> None:
    probe = train(source, items(), layers=None)
    assert list(probe.weights) == [4]
    sweep = probe.card["sweep"]
    assert sweep["4"] > sweep["2"] > 0.5
    assert probe.card["layers"] == [4]


def test_the_layer_is_chosen_on_the_select_split(make_source: MakeSource) -> None:
    # The select items are marked so that only layer 4 tells them apart; everywhere else both do.
    source = make_source({2: direction(2, 3.0), 4: direction(4, 3.0)})
    stream = source.stream
    source.stream = lambda ids, layer: stream([0 if layer == 2 and ord("#") in ids else t for t in ids], layer)
    marked = [item.model_copy(update={"text": f"{item.text}#", "split": "select"}) for item in items(40)]
    assert list(train(source, items(100) + marked, layers=None).weights) == [4]


def test_the_same_seed_gives_the_same_probe_to_the_bit(source: Any) -> None:
    first, again, other = (train(source, items(), seed=seed) for seed in (1, 1, 2))
    assert first.version == again.version
    assert first.direction.digest != other.direction.digest


def test_a_trained_probe_survives_its_file(source: Any, tmp_path: Path) -> None:
    probe = train(source, items(), threshold=0.3, aggregate="worst_ema", alarm="high")
    save_probe(probe, tmp_path / "p.safetensors")
    loaded = load_probe(tmp_path / "p.safetensors")
    assert loaded.version == probe.version
    assert loaded.card == probe.card
    assert (loaded.threshold, loaded.model, loaded.label) == (0.3, "org/character-model", "true")
    loaded.check_fits(source.shape)


def chat(mark: str, i: int, question_mark: str = "") -> LabelledItem:
    messages = [
        {"role": "user", "content": f"{question_mark}question {i}"},
        {"role": "assistant", "content": f"{mark}answer {i}"},
    ]
    return LabelledItem.model_validate({"messages": messages, "label": int(mark == "+")})


def test_of_a_chat_the_answer_is_read_and_not_the_template(source: Any) -> None:
    # The stand-in model forgets the mark at the end-of-turn token: only the answer's own tokens can be told apart.
    given = [chat("+" if i % 2 else "-", i) for i in range(200)]
    assert train(source, given, token="last").card["metrics"]["auroc"] > 0.98
    assert train(source, given, aggregate="mean", token="mean").card["metrics"]["auroc"] > 0.99


def test_a_probe_of_the_prompts_end_reads_before_the_answer(make_source: MakeSource) -> None:
    source = make_source({4: direction(4, 2.5)})
    encode = source.encode
    # Here the mark is not forgotten at the end of a turn, so the prompt's end still knows the question's.
    source.encode = lambda item, add_generation_prompt=False: [t for t in encode(item, add_generation_prompt) if t != 3]
    given = []
    for i in range(200):
        known = "+" if i % 2 else "-"
        # The answer's mark is a coin flip: whoever reads it learns nothing.
        item = chat("+" if (i // 2) % 2 else "-", i, question_mark=known)
        given.append(item.model_copy(update={"label": i % 2}))
    probe = train(source, given, aggregate="prompt_end")
    assert probe.card["metrics"]["auroc"] > 0.98
    assert probe.card["token"] == "prompt_end"


def test_progress_counts_every_item_that_is_read(source: Any) -> None:
    seen: list[tuple[int, int]] = []
    train(source, items(200), progress=lambda done, total: seen.append((done, total)))
    # Of 200 items 40 calibrate and are read twice; one direction is fitted and five controls.
    assert seen[-1] == (246, 246)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert source.prompts_read == 240
    seen.clear()
    train(source, items(200), layers=None, progress=lambda done, total: seen.append((done, total)))
    # Three layers are fitted; the one that is chosen is not fitted again.
    assert seen[-1] == (248, 248)
    seen.clear()
    source.prompts_read = 0
    train(source, items(200), aggregate="max", progress=lambda done, total: seen.append((done, total)))
    # Those that train are read, and fitted on, once more in each round.
    assert seen[-1] == (246 + ONLINE_ROUNDS * 129, 246 + ONLINE_ROUNDS * 129)
    assert source.prompts_read == 240 + ONLINE_ROUNDS * 128


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "a/b"}, "cannot be a name"),
        ({"layers": [4, 5]}, "layer 5 has no site"),
        ({"layers": []}, "no layers"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_read(
    source: Any, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ArtefactError, match=why):
        train(source, items(), **changes)
    assert source.prompts_read == 0


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ([], "train"),
        (items(200)[::2], "train"),
        (items(4), "train"),
        (items(100) + items(2, split="eval")[:1], "eval"),
    ],
)
def test_splits_without_both_labels_are_refused(source: Any, given: list[LabelledItem], split: str) -> None:
    with pytest.raises(ArtefactError, match=f"the {split} split"):
        train(source, given)


def test_nothing_to_learn_is_an_error_or_chance(source: Any) -> None:
    try:
        probe = train(source, items(), layers=[6])
    except ArtefactError:
        return
    assert 0.2 < probe.card["metrics"]["auroc"] < 0.8


def test_a_stream_that_is_not_finite_is_refused(make_source: MakeSource) -> None:
    source = make_source({4: np.full(D, np.inf, np.float32)})
    with np.errstate(invalid="ignore"), pytest.raises(ArtefactError, match="NaN"):
        train(source, items())


def test_splits_are_disjoint_balanced_and_as_named() -> None:
    given = items(90) + items(10, split="eval")
    splits = split_items(given, seed=3, choosing=True)
    assert sorted([*splits.train, *splits.select, *splits.calibrate, *splits.eval]) == list(range(100))
    assert splits.eval.tolist() == list(range(90, 100))
    assert Counter(given[i].label for i in splits.calibrate) == {0: 9, 1: 9}
    assert split_items(given, seed=4, choosing=True).calibrate.tolist() != splits.calibrate.tolist()


def test_a_dimension_that_does_not_vary_stays_at_its_scale() -> None:
    features = {0: f32([[7, 1], [7, 2], [7, 9]])}
    standardiser = Standardiser.fit(features)
    assert standardiser.std[0][0] == 1.0
    assert standardiser.apply(features)[:, 0].tolist() == [0, 0, 0]


def test_auroc_counts_pairs() -> None:
    scores, labels = [0.1, 0.4, 0.4, 0.8, 0.3], np.array([0, 0, 1, 1, 1])
    pairs = [(p, n) for p in (0.4, 0.8, 0.3) for n in (0.1, 0.4)]
    assert auroc(scores, labels) == pytest.approx(sum((p > n) + (p == n) / 2 for p, n in pairs) / len(pairs))
