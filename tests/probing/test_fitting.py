"""Directions and the rows that they are fitted on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pilothouse.core.errors import ArtefactError
from pilothouse.probing import ActivationCache, LabelledItem, Probe, train_probe
from pilothouse.probing.activations import ItemReader
from pilothouse.probing.fitting import Fitter, Samples, fit_direction

MakeSource = Callable[..., Any]
D = 6


def axis(layer: int, size: float = 3.0) -> np.ndarray:
    row = np.zeros(D, dtype=np.float32)
    row[layer % D] = size
    return row


def cloud(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Two classes apart along (1, 1), with noise ten times as wide along the second axis."""
    rng = np.random.default_rng(1)
    labels = np.arange(n) % 2
    return rng.normal(size=(n, 2)) * [0.3, 3.0] + labels[:, None], labels


def test_whitening_is_linear_discriminant_analysis() -> None:
    x, labels = cloud()
    found = fit_direction("mass_mean_whitened", x, labels, [None] * len(x)).weight
    residuals = x - np.stack([x[labels == label].mean(axis=0) for label in (0, 1)])[labels]
    theta = x[labels == 1].mean(axis=0) - x[labels == 0].mean(axis=0)
    shrunk = ledoit_wolf(residuals, assume_centered=True)[0]
    np.testing.assert_allclose(found, np.linalg.inv(shrunk) @ theta, rtol=1e-8)
    oracle = LinearDiscriminantAnalysis(solver="lsqr").fit(x, labels).coef_[0]
    # Shrinking a covariance of two dimensions by 300 rows changes little.
    assert found @ oracle / np.linalg.norm(found) / np.linalg.norm(oracle) > 0.99


def test_whitening_turns_away_from_the_noise() -> None:
    x, labels = cloud()
    plain, whitened = (fit_direction(m, x, labels, [None] * 300).weight for m in ("mass_mean", "mass_mean_whitened"))
    assert abs(plain[1] / plain[0]) > 0.5
    assert abs(whitened[1] / whitened[0]) < 0.1


def test_rows_that_do_not_vary_cannot_be_whitened() -> None:
    x = np.repeat([[0.0, 0.0], [1.0, 1.0]], 4, axis=0)
    with pytest.raises(ArtefactError, match="do not vary within the classes"):
        fit_direction("mass_mean_whitened", x, np.repeat([0, 1], 4), [None] * 8)


def chats(n: int, split: str | None = None) -> list[LabelledItem]:
    """Answers of noise in which one letter in the middle is marked; the one after it takes the mark back."""
    found = []
    for i in range(n):
        mark = "+" if i % 2 else "-"
        turns = [
            {"role": "user", "content": f"{split}{i}"},
            {"role": "assistant", "content": f"abcdefgh{mark}ijk{'-' if i % 2 else '+'}l"},
        ]
        found.append(LabelledItem.model_validate({"messages": turns, "label": i % 2, "split": split}))
    return found


def reader(source: Any, cache: ActivationCache | None = None) -> ItemReader:
    return ItemReader(source, lambda count: None, cache)


def probe_at(layers: dict[int, np.ndarray], **changes: Any) -> Probe:
    settings: dict[str, Any] = {"name": "p", "label": "bad", "alarm": "high", "aggregate": "worst_ema"}
    return Probe(**{**settings, "threshold": 0.5, "weights": layers, **changes})


def test_online_rows_are_the_averages_that_the_aggregate_rests_on(make_source: MakeSource) -> None:
    source = make_source({2: axis(2), 4: axis(4)}, noise=0.5)
    items = chats(20)
    probes = [probe_at({2: axis(2)}), probe_at({4: -axis(4)}, aggregate="max")]
    samples = reader(source).online(items, probes)
    for i, item in enumerate(items):
        ids = source.encode([message.model_dump() for message in item.messages or ()])
        answer = slice(len(ids) - 2 - len(item.labelled_text), len(ids) - 2)
        first = source.stream(ids, 2)[answer].astype(np.float64)
        average, worst = first[0], first[0]
        for row in first[1:]:
            average = (average + row) / 2
            worst = max(worst, average, key=lambda row: row @ axis(2))
        np.testing.assert_allclose(samples.features[2][i], worst, rtol=1e-5, atol=1e-5)
        second = source.stream(ids, 4)[answer]
        np.testing.assert_allclose(samples.features[4][i], second[np.argmin(second @ axis(4))], rtol=1e-5)
    assert samples.labels.tolist() == [0, 1] * 10


def test_training_online_finds_what_the_mean_of_a_long_answer_hides(make_source: MakeSource) -> None:
    # One letter of two hundred stands out; in the mean of them all it is weaker than the noise.
    source = make_source({2: axis(2, 0.0)}, noise=0.5)
    stream = source.stream

    def marked(ids: Any, layer: int) -> Any:
        rows = stream(ids, layer)
        rows[1:, 2] += np.array([3.0 if t == ord("!") else 0.0 for t in ids[1:]], dtype=np.float32)
        return rows

    source.stream = marked
    items = []
    for split, n in (("train", 60), ("calibrate", 40), ("eval", 40)):
        for i in range(n):
            answer = ("abc!" if i % 2 else "abcd") + "e" * 200
            turns = [{"role": "user", "content": f"q{split}{i}"}, {"role": "assistant", "content": answer}]
            items.append(LabelledItem.model_validate({"messages": turns, "label": i % 2, "split": split}))
    settings: dict[str, Any] = {"name": "p", "label": "bad", "alarm": "high", "layers": [2], "method": "logistic"}
    online, by_mean = (train_probe(source, items, token=token, **settings) for token in (None, "mean"))
    assert (online.aggregate, online.card["token"], by_mean.card["token"]) == ("worst_ema", "online", "mean")
    rows = [probe.direction.layers[2] for probe in (online, by_mean)]
    found, blurred = (row[2] / np.linalg.norm(row) for row in rows)
    assert blurred < 0.8 < 0.95 < found
    assert by_mean.card["metrics"]["auroc"] < 0.95 < 0.98 < online.card["metrics"]["auroc"]


@pytest.mark.parametrize(
    ("method", "aggregate", "token", "expected"),
    [
        ("logistic", None, None, "online"),
        ("mass_mean", None, None, "mean"),
        ("mass_mean", None, "online", "online"),
        ("logistic", "last", None, "last"),
        ("logistic", "mean", "online", "mean"),
        ("logistic", "worst_rolling", "last", "last"),
    ],
)
def test_the_tokens_that_are_fitted_on_follow_from_the_aggregate_and_the_method(
    make_source: MakeSource, method: Any, aggregate: Any, token: Any, expected: str
) -> None:
    source = make_source({2: axis(2)})
    items = [
        LabelledItem.model_validate(
            {
                "messages": [
                    {"role": "user", "content": f"{split}{i}"},
                    {"role": "assistant", "content": "+good" if i % 2 else "-bad"},
                ],
                "label": i % 2,
                "split": split,
            }
        )
        for split in ("train", "calibrate", "eval")
        for i in range(20)
    ]
    settings: dict[str, Any] = {"name": "p", "label": "true", "alarm": "low", "layers": [2], "method": method}
    probe = train_probe(source, items, aggregate=aggregate, token=token, **settings)
    assert probe.card["token"] == expected


def test_labels_by_token_fit_each_token_that_a_span_covers(make_source: MakeSource) -> None:
    source = make_source({2: axis(2)})
    items = []
    for split, n in (("train", 40), ("calibrate", 30), ("eval", 30)):
        for i in range(n):
            text = f"{split}{i} good+bad-good"
            start = text.index("+")
            spans = [
                {"start": start, "stop": start + 4, "label": 1},
                {"start": start + 4, "stop": len(text), "label": 0},
            ]
            # Items of label 0 have the good half only.
            kept = {"text": text, "spans": spans} if i % 2 else {"text": text.replace("+", "-"), "spans": spans[1:]}
            items.append(LabelledItem.model_validate({**kept, "split": split}))
    rows = reader(source).samples(items[:2], [2], "spans")
    # The first item has the five letters after its second mark, the other one both halves.
    assert rows.labels.tolist() == [0] * 5 + [1] * 4 + [0] * 5
    assert rows.owners.tolist() == [0] * 5 + [1] * 9
    probe = train_probe(
        source,
        items,
        name="p",
        label="bad",
        alarm="high",
        layers=[2],
        method="logistic",
        labels="token",
        aggregate="worst_ema",
    )
    assert probe.card["token"] == "spans"
    assert probe.card["metrics"]["auroc"] > 0.95
    row = probe.direction.layers[2]
    assert row[2] / np.linalg.norm(row) > 0.9


def test_a_flip_turns_all_rows_of_its_item() -> None:
    samples = Samples({}, np.array([0, 0, 1]), np.array([0, 0, 1]), (None, None, "t"))
    assert samples.flipped(np.array([1, 0])).labels.tolist() == [1, 1, 1]
    assert Samples({0: np.zeros((3, 1), np.float32)}, samples.labels, samples.owners, samples.topics).without_topics(
        {"t"}
    ).labels.tolist() == [0, 0]


@pytest.mark.parametrize("aggregate", ["worst_ema", "last"])
def test_a_stopped_run_goes_on_from_the_cache(make_source: MakeSource, tmp_path: Path, aggregate: Any) -> None:
    items = [item for split in ("train", "calibrate", "eval") for item in chats(40, split)]
    settings: dict[str, Any] = {"name": "p", "label": "bad", "alarm": "high", "layers": [2, 4], "method": "logistic"}
    settings["aggregate"] = aggregate
    whole = make_source({2: axis(2), 4: axis(4)})
    expected = train_probe(whole, items, **settings)

    stopped = make_source({2: axis(2), 4: axis(4)})
    read = stopped.read

    def until_interrupted(prompts: Any, layers: Any) -> Any:
        if stopped.prompts_read > 70:
            raise KeyboardInterrupt
        return read(prompts, layers)

    stopped.read = until_interrupted
    cache = ActivationCache(tmp_path / "work", "model")
    with pytest.raises(KeyboardInterrupt):
        train_probe(stopped, items, cache=cache, **settings)
    again = make_source({2: axis(2), 4: axis(4)})
    found = train_probe(again, items, cache=cache, **settings)
    assert found.version == expected.version
    # No more than the batch under way is read again.
    assert stopped.prompts_read + again.prompts_read <= whole.prompts_read
    silent = make_source({2: axis(2), 4: axis(4)})
    assert train_probe(silent, items, cache=cache, **settings).version == expected.version
    assert silent.prompts_read == 0
    cache.remove()
    assert not (tmp_path / "work").exists()


def test_activations_of_another_model_are_read_anew(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source({2: axis(2)})
    items = chats(4)
    first = reader(source, ActivationCache(tmp_path, "one")).samples(items, [2], "last")
    reader(source, ActivationCache(tmp_path, "one")).samples(items, [2], "last")
    assert source.prompts_read == 4
    other = reader(source, ActivationCache(tmp_path, "two")).samples(items, [2], "last")
    assert source.prompts_read == 8
    np.testing.assert_array_equal(first.features[2], other.features[2])


def test_a_damaged_cache_file_is_named(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source({2: axis(2)})
    cache = ActivationCache(tmp_path, "one")
    reader(source, cache).samples(chats(2), [2], "last")
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"half")
    with pytest.raises(ArtefactError, match=kept.name):
        reader(source, cache).samples(chats(2), [2], "last")


def test_batches_are_of_few_items_and_few_tokens(make_source: MakeSource) -> None:
    source = make_source({2: axis(2)})
    sizes: list[list[int]] = []
    read = source.read

    def noted(prompts: Any, layers: Any) -> Any:
        sizes.append([len(prompt) for prompt in prompts])
        return read(prompts, layers)

    source.read = noted
    texts = ["x" * 9] * 20 + ["y" * 999] * 3 + ["z" * 4999, "z"]
    samples = reader(source).samples([LabelledItem(text=text, label=1) for text in texts], [2], "last")
    assert sizes == [[10] * 16, [10] * 4 + [1000] * 2, [1000], [5000], [2]]
    assert len(samples.features[2]) == len(texts)


def test_only_the_rows_that_are_needed_are_held(make_source: MakeSource) -> None:
    # A row an item and layer, whatever the length of the items; the streams themselves are views of nothing kept.
    source = make_source({2: axis(2)})
    samples = reader(source).samples([LabelledItem(text="x" * 500, label=1)] * 8, [2], "mean")
    assert samples.features[2].shape == (8, D)
    assert samples.features[2].base is None


def test_a_difference_of_means_gives_no_bias_before_it_is_scaled() -> None:
    rng = np.random.default_rng(0)
    features = {0: rng.normal(size=(20, 3)).astype(np.float32)}
    samples = Samples(features, np.arange(20) % 2, np.arange(20), (None,) * 20)
    assert Fitter("mass_mean", lambda count: None).fit(samples)["bias"] == 0.0
