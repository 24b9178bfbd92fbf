"""Measures, strongest examples and names, on an SAE whose features are known."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.steering.sae_examples import Example, top_rows
from pilothouse.steering.sae_labels import Shared, label_features, read_labels, shared_by, write_labels
from pilothouse.steering.sae_measure import measure_sae
from pilothouse.steering.sae_pass import run_pass
from pilothouse.steering.sae_store import RowStore
from pilothouse.steering.sae_texts import SaeText

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sae_lens

WORDS = ["<s>", "the", "cat", "dog", "sat", "ran", "happy", "sad", "king", "queen", "here", "there"]
WIDTH = 2 * len(WORDS) + 1


class WordSource:
    """A model whose stream has one dimension for the token, one for the token before it, and one for sad texts."""

    shape = ModelShape("org/words", WIDTH, 2, (0, 1))

    def encode(self, item: Any, add_generation_prompt: bool = False) -> list[int]:
        return [0, *(WORDS.index(word) for word in item.split())]

    def read(self, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, Float32]]:
        return [{layer: self.stream(prompt) for layer in layers} for prompt in prompts]

    def stream(self, prompt: Sequence[int]) -> Float32:
        rows = np.zeros((len(prompt), WIDTH), dtype=np.float32)
        for i, token in enumerate(prompt):
            rows[i, token] = 1 + i / 100
            if i:
                rows[i, len(WORDS) + prompt[i - 1]] = 1
        if WORDS.index("sad") in prompt:
            rows[1:, -1] = 1 + np.arange(1, len(prompt)) / 1000
        return rows

    def close(self) -> None: ...


def decode(ids: Sequence[int]) -> str:
    return "".join(f" {WORDS[i]}" for i in ids)


@pytest.fixture(scope="module")
def texts() -> list[SaeText]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(300):
        tone = "sad" if i % 10 == 0 else "happy"
        words = [WORDS[j] for j in rng.choice([1, 2, 3, 4, 5, 8, 9, 10, 11], size=rng.integers(3, 9))]
        words.insert(int(rng.integers(len(words))), tone)
        made.append(SaeText.model_validate({"text": " ".join(words), "tone": tone, "lang": "en", "id": i}))
    return made


@pytest.fixture
def store(tmp_path: Path, texts: list[SaeText]) -> RowStore:
    made = RowStore.open(tmp_path / "store", {}, resume=True)
    made.fill(WordSource(), texts, 1, context=99)
    return made


@pytest.fixture(scope="module")
def identity() -> Any:
    """An SAE whose feature i is dimension i, and a further one that is never active."""
    sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=WIDTH, d_sae=WIDTH + 1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(WIDTH, WIDTH + 1))
        sae.W_dec.copy_(torch.eye(WIDTH + 1, WIDTH))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def test_measures_are_those_of_the_whole_matrix(identity: Any) -> None:
    rng = np.random.default_rng(3)
    rows = (1000 + rng.standard_normal((9000, WIDTH)) * np.arange(1, WIDTH + 1)).astype(np.float32)
    rows[:, 4] = -1
    rows[::2, 5] = -2
    found = measure_sae(identity, rows)
    rebuilt = np.maximum(rows, 0)
    wide = rows.astype(np.float64)
    error, variance = ((wide - rebuilt) ** 2).mean(axis=0), wide.var(axis=0)
    np.testing.assert_allclose(found.error, error, rtol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-6)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(found.fired[:-1], (rows > 0).sum(axis=0))
    np.testing.assert_array_equal(found.max_act[:-1], rebuilt.max(axis=0))
    card = found.card
    assert card["explained_variance"] == pytest.approx(1 - error.sum() / variance.sum())
    varies = variance > 0
    by_dimension = np.mean(1 - error[varies] / variance[varies])
    assert card["explained_variance_by_dimension"] == pytest.approx(by_dimension, abs=1e-6)
    assert (card["tokens"], card["dead"], card["dead_share"]) == (9000, 2, 2 / (WIDTH + 1))
    assert card["l0"] == pytest.approx(WIDTH - 1.5)
    assert card["mse"] == pytest.approx(error.sum())
    assert json.loads(json.dumps(card)) == card


def test_the_strongest_rows_are_those_of_a_sort_with_one_of_each_text(identity: Any, store: RowStore) -> None:
    found = top_rows(identity, store, 5)
    rows = np.asarray(store.rows)
    for feature in range(WIDTH):
        best = [(text.start + int(np.argmax(rows[text.start : text.stop, feature]))) for text in store.texts]
        best = sorted((row for row in best if rows[row, feature] > 0), key=lambda row: (-rows[row, feature], row))[:5]
        assert found.rows[feature].tolist() == best + [-1] * (5 - len(best))
        assert found.acts[feature, : len(best)].tolist() == rows[best, feature].tolist()
        assert found.fired[feature] == (rows[:, feature] > 0).sum()
    assert found.fired[WIDTH] == 0


def test_chunks_do_not_show(identity: Any, store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = top_rows(identity, store, 5)
    monkeypatch.setattr("pilothouse.steering.sae_examples.ROWS_AT_ONCE", 20)
    parts = top_rows(identity, store, 5)
    for name in ("acts", "rows", "fired"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_an_interrupted_pass_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []

    def add(state: dict[str, Any], chunk: int) -> None:
        if chunk == stop:
            raise KeyboardInterrupt
        seen.append(chunk)
        state["sum"] += chunk

    chunks, kept = list(range(10)), tmp_path / "pass.safetensors"
    for place in (4, 7):
        stop = place
        with pytest.raises(KeyboardInterrupt):
            run_pass({"sum": np.zeros(1)}, chunks, add, kept, seconds=0.0)
    stop = -1
    assert run_pass({"sum": np.zeros(1)}, chunks, add, kept, seconds=0.0)["sum"][0] == 45
    assert seen == chunks
    with pytest.raises(ArtefactError, match="another pass"):
        run_pass({"sum": np.zeros(2)}, chunks, add, kept)
    kept.write_bytes(b"{")
    with pytest.raises(ArtefactError, match="cannot be read"):
        run_pass({"sum": np.zeros(1)}, chunks, add, kept)


def test_planted_features_get_their_names(tmp_path: Path, identity: Any, store: RowStore, texts: list[SaeText]) -> None:
    told: list[tuple[int, int]] = []
    found = top_rows(identity, store, 6)
    labelled = label_features(found, store, texts, decode, progress=lambda *now: told.append(now))
    names = {label.feature: label.shared.name for label in labelled if label.shared}
    assert names[WORDS.index("cat")] == 'token "cat"'
    assert names[len(WORDS) + WORDS.index("dog")] == 'after "dog"'
    # Language and happy tone hold (nearly) everywhere and name nothing; an id never repeats.
    assert names[WIDTH - 1] == "tone = sad"
    assert {label.feature for label in labelled} == set(np.flatnonzero(found.fired))
    assert WIDTH not in names
    assert told[-1] == (len(labelled), len(labelled))

    cat = next(label for label in labelled if label.feature == WORDS.index("cat"))
    assert len({example.text for example in cat.examples}) == len(cat.examples) == 6
    assert [example.activation for example in cat.examples] == sorted(
        (e.activation for e in cat.examples), reverse=True
    )
    for example in cat.examples:
        ids = texts[example.text].token_ids(WordSource(), 99)
        assert example.token == " cat"
        assert example.before + example.token + example.after == decode(ids[1:])
        assert ids[example.position] == WORDS.index("cat")
        assert example.activation == pytest.approx(1 + example.position / 100)
    assert cat.fired == sum(text.item.split().count("cat") for text in texts if isinstance(text.item, str))

    content = write_labels(tmp_path, {"digest": "d"}, labelled)
    assert read_labels(tmp_path) == content
    assert content["features"][0]["examples"][0]["activation"] == labelled[0].examples[0].activation
    assert read_labels(tmp_path / "store") is None
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(ArtefactError, match="labels of an SAE"):
        read_labels(tmp_path)


def example(token: str, before: str = "", text: int = 0) -> Example:
    return Example(1.0, text, 1, token, before, "")


@pytest.mark.parametrize(
    ("found", "metadata", "name"),
    [
        ([example(" a")] * 4 + [example(" b")], [{}] * 5, 'token "a"'),
        ([example(" a")] * 3 + [example(" b")] * 2, [{}] * 5, None),
        ([example(" a")] * 2, [{}] * 2, None),
        ([example(" a", " of the"), example(" b", "in the"), example(" c", "the")], [{}] * 3, 'after "the"'),
        # A token in the middle of a word: the word before it is not its own beginning.
        ([example("a", " the x"), example("b", "the yy"), example("c", " the z")], [{}] * 3, 'after "the"'),
        ([example("\n")] * 3, [{}] * 3, None),
        ([example("a"), example("b"), example("c")], [{"topic": "rare", "lang": "en"}] * 3, "topic = rare"),
        ([example("a"), example("b"), example("c")], [{"topic": "common", "lang": "en"}] * 3, None),
        ([example("a"), example("b"), example("c")], [{"topic": "rare"}, {}, {"topic": "x"}], None),
        ([example("a"), example("b"), example("c")], [{"half": "y", "topic": "rare"}] * 3, "topic = rare"),
    ],
)
def test_what_examples_share(found: list[Example], metadata: list[dict[str, str]], name: str | None) -> None:
    base = {
        ("topic", "rare"): 0.1,
        ("topic", "common"): 0.6,
        ("lang", "en"): 1.0,
        ("half", "y"): 0.4,
        ("topic", "x"): 0.1,
    }
    shared = shared_by(found, metadata, base, purity=0.8)
    assert (shared and shared.name) == name


def test_purity_is_the_share_that_agrees() -> None:
    found = [example(" a")] * 3 + [example(" b")]
    assert shared_by(found, [{}] * 4, {}, purity=0.75) == Shared("token", None, "a", 0.75)
    assert shared_by(found, [{}] * 4, {}, purity=0.76) is None
