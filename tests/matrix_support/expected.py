"""What answers must be: Hugging Face in float32 on the tokens that came back, and positions counted by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from engine_support.harness import Reference
from serve_support.operations import everywhere
from serve_support.server import Server

from matrix_support.requests import PROBES, Answer, Choice, Grammar, Sent
from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.sites import Float32
from pilothouse.harbor.paths import model_dir, probes_dir, vectors_dir
from pilothouse.probing import load_probes
from pilothouse.steering import load_vectors

LOGPROB_TOLERANCE = 5e-4
"""In nats; the edits are of the size of the stream, and so is what float32 loses on the way."""
SCORE_TOLERANCE = 5e-4
"""Of the standard deviation of the raw readouts of the sequence."""
LEAST_EFFECT = 0.05
"""In nats: how far at least one log-probability of a steered answer is from what it is without the edits."""

Key = tuple[str, str, str]


@dataclass
class Oracle:
    """The reference for what a server serves; equal sequences under equal edits are computed once."""

    server: Server
    reference: Reference
    _known: dict[Any, tuple[Float32, Float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vectors = {name: vector.direction for name, vector in load_vectors(vectors_dir()).items()}
        self.vectors["everywhere"] = everywhere(self.server)
        self.layers = {name: vector.default_layers for name, vector in load_vectors(vectors_dir()).items()}
        self.layers["everywhere"] = tuple(range(6))
        self.probes = load_probes(probes_dir())

    def run(self, choice: Choice, steering: list[dict[str, Any]]) -> tuple[Float32, Float32]:
        """Log-probabilities [n_tokens - 1, vocabulary] of every token but the first, prompt included, and raw readouts
        of PROBES [n_tokens, 2]."""
        key = (repr(steering), tuple(choice.prompt), tuple(choice.token_ids))
        if key not in self._known:
            n_prompt, tokens = len(choice.prompt), [*choice.prompt, *choice.token_ids]
            edits = [self._edit(entry, n_prompt, len(tokens)) for entry in steering]
            readouts = tuple(Readout(name, self.probes[name].direction) for name in PROBES)
            plan = Plan(tuple(edit for edit in edits if edit is not None), readouts)
            # All but the first are called generated: positions are absolute by now.
            self._known[key] = self.reference.run(tokens[:1], tokens[1:], plan)
        return self._known[key]

    def _edit(self, entry: dict[str, Any], n_prompt: int, n_tokens: int) -> Edit | None:
        start, stop = span(entry, n_prompt, n_tokens)
        if stop <= start:
            return None
        name = entry["vector"]
        layers = entry.get("layers") or self.layers[name]
        direction = Direction({layer: self.vectors[name].layers[layer] for layer in layers})
        values = dict.fromkeys(layers, float(entry.get("strength", 1.0)))
        return Edit(name, direction, values, PositionRange(start, stop), op=entry.get("op", "add"))


def span(entry: dict[str, Any], n_prompt: int, end: int) -> tuple[int, int]:
    """The positions [start, stop) of an edit, by the interface's words; nothing behind `end`."""
    selector = entry.get("positions", "all")
    start = 0 if selector in ("all", "prompt") else n_prompt - 1
    stop = {"prompt": n_prompt - 1, "last_prompt": n_prompt}.get(selector, end)
    return start, min(stop, end)


def check_logprobs(oracle: Oracle, answer: Answer, grammar: Grammar | None = None) -> None:
    """Every log-probability, those of an echoed prompt too. vLLM masks what a grammar forbids before it takes them."""
    for choice in answer.choices:
        assert len(choice.logprobs) == len(choice.token_ids)
        predicted, _ = oracle.run(choice, answer.steering)
        tokens = [*choice.prompt, *choice.token_ids]
        n_prompt = len(choice.prompt)
        if grammar is not None:
            predicted = among(predicted[n_prompt - 1 :], allowed(grammar, choice.token_ids), n_prompt - 1)
        expected = predicted[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(choice.logprobs, expected[n_prompt - 1 :], atol=LOGPROB_TOLERANCE)
        if choice.echoed:
            assert choice.echoed[0] is None
            echoed = np.array(choice.echoed[1:], dtype=np.float64)
            np.testing.assert_allclose(echoed, expected[: n_prompt - 1], atol=LOGPROB_TOLERANCE)


def allowed(grammar: Grammar, token_ids: list[int]) -> npt.NDArray[np.bool_]:
    """Which tokens the grammar lets follow at each generated position, by xgrammar itself [n_generated, vocabulary]."""
    import xgrammar
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    compiler = xgrammar.GrammarCompiler(info)
    language, text = grammar
    compiled = compiler.compile_regex(text) if language == "regex" else compiler.compile_json_schema(text)
    matcher = xgrammar.GrammarMatcher(compiled)
    rows = []
    for token in token_ids:
        mask = xgrammar.allocate_token_bitmask(1, len(tokenizer))
        matcher.fill_next_token_bitmask(mask)
        rows.append(np.unpackbits(mask.numpy().view(np.uint8)[0], bitorder="little")[: len(tokenizer)])
        assert matcher.accept_token(token), (text, token_ids)
    return np.array(rows, dtype=np.bool_)


def among(predicted: Float32, permitted: npt.NDArray[np.bool_], before: int) -> Float32:
    """Log-probabilities among what is permitted, behind `before` rows that nobody looks at."""
    masked = np.where(permitted, predicted.astype(np.float64), -np.inf)
    top = masked.max(axis=1, keepdims=True)
    masked -= top + np.log(np.exp(masked - top).sum(axis=1, keepdims=True))
    rows: Float32 = np.concatenate([np.zeros((before, masked.shape[1])), masked]).astype(np.float32)
    return rows


def effect(oracle: Oracle, answer: Answer) -> float:
    """How far an answer's log-probabilities are from what they were without its edits, in nats, at the most."""
    moved = 0.0
    for choice in answer.choices:
        edited, plain = (
            oracle.run(choice, steering)[0][len(choice.prompt) - 1 :] for steering in (answer.steering, [])
        )
        index = np.arange(len(choice.token_ids))
        moved = max(moved, float(np.abs(edited[index, choice.token_ids] - plain[index, choice.token_ids]).max()))
    return moved


def check_effect(oracle: Oracle, answers: list[Answer]) -> None:
    """Without its edits the reference says something else: were they left out, `check_logprobs` would find it."""
    for answer in answers:
        assert effect(oracle, answer) > LEAST_EFFECT, "the edits move nothing"


def check_readouts(oracle: Oracle, answer: Answer) -> int:
    """Every token's logit, the prompt's where they were asked for, and the order in which a stream brought them; the
    number of logits compared."""
    compared = 0
    for choice in answer.choices:
        _, raw = oracle.run(choice, answer.steering)
        for k, name in enumerate(PROBES):
            compared += check_probe(oracle, answer, choice, name, raw[:, k])
        if answer.streamed:
            check_blocks(choice)
    return compared


def check_probe(oracle: Oracle, answer: Answer, choice: Choice, name: str, raw: Float32) -> int:
    shown, n_prompt = choice.shown["probes"][name], len(choice.prompt)
    logits, tolerance = oracle.probes[name].logits(raw), SCORE_TOLERANCE * float(raw.std())
    tokens = shown["tokens"]
    assert [entry["token_id"] for entry in tokens] == choice.token_ids
    assert shown["n_scored"] == len(tokens) - 1
    assert tokens[-1]["logit"] is None
    measured = [entry["logit"] for entry in tokens[:-1]]
    assert None not in measured
    np.testing.assert_allclose(measured, logits[n_prompt:-1], atol=tolerance)
    np.testing.assert_allclose(shown["stats"]["prompt_end"], logits[n_prompt - 1], atol=tolerance)
    if not answer.body["probes"].get("prompt"):
        return len(measured)
    entries = shown["prompt_tokens"]
    assert [entry["token_id"] for entry in entries] == choice.prompt
    # The beginning of a sequence is not scored.
    first = 1 if choice.prompt[0] == 1 else 0
    assert [entry["logit"] is None for entry in entries] == [i < first for i in range(n_prompt)]
    np.testing.assert_allclose([e["logit"] for e in entries[first:]], logits[first:n_prompt], atol=tolerance)
    return len(measured) + n_prompt - first


def check_blocks(choice: Choice) -> None:
    """The scores of a stream's chunks are contiguous, complete at the finish, and those of the finish chunk."""
    for name in PROBES:
        arrived = list[float | None]()
        for block in choice.blocks:
            assert block[name]["start"] == len(arrived)
            assert len(block[name]["logits"]) == len(block[name]["scores"])
            arrived += block[name]["logits"]
        assert arrived == [entry["logit"] for entry in choice.shown["probes"][name]["tokens"]]
    for entry, token in zip(choice.entries, choice.shown["probes"][PROBES[0]]["tokens"], strict=False):
        if "probe_scores" in entry:
            assert entry["probe_scores"][PROBES[0]]["logit"] == token["logit"]


def check_receipts(answer: Answer) -> None:
    """Every edit has its receipt, of all its positions but the last generated token's, which is never fed back."""
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == sum(len(choice.token_ids) for choice in answer.choices)
    for choice in answer.choices:
        receipts = choice.shown.get("steering", [])
        assert [receipt["vector"] for receipt in receipts] == [entry["vector"] for entry in answer.steering]
        n_prompt = len(choice.prompt)
        for receipt, entry in zip(receipts, answer.steering, strict=True):
            start, stop = span(entry, n_prompt, n_prompt + len(choice.token_ids) - 1)
            assert receipt["tokens_edited"] + receipt["tokens_from_cache"] == stop - start, (receipt, start, stop)
            assert receipt["tokens_from_cache"] <= max(min(stop, n_prompt - 1) - start, 0)
            assert receipt["op"] == entry.get("op", "add")
            assert "error" not in receipt


def delivered(answers: list[Answer]) -> dict[Key, float]:
    """What Pilothouse's counters must have grown by, as the clients saw it."""
    found: Counter[Key] = Counter()
    for answer in answers:
        for name in {entry["vector"] for entry in answer.steering}:
            found["pilothouse_steering_requests_total", name, ""] += 1
        for choice in answer.choices:
            for receipt in choice.shown.get("steering", []):
                found["pilothouse_steering_tokens_total", receipt["vector"], ""] += receipt["tokens_edited"]
            for name, shown in choice.shown.get("probes", {}).items():
                found["pilothouse_probe_tokens_total", name, ""] += shown["n_scored"]
                if shown["score"] is None:
                    found["pilothouse_probe_unscored_total", name, shown["reason"]] += 1
                else:
                    found["pilothouse_probe_requests_total", name, str(shown["flagged"]).lower()] += 1
    return {key: float(value) for key, value in found.items() if value}


def check_no_leaks(sent: Sent) -> None:
    """The plain request alone answers as before, to the last bit, the counters are what clients got, and no slot is
    held when nobody is there."""
    before, after = sent.alone
    assert before == after
    assert sent.counted == delivered(sent.everything)
    for sign in ("Slots are not as they should be", "Traceback", "too few"):
        assert sign not in sent.log


def check_unsteered(oracle: Oracle, sent: Sent) -> None:
    """Plain requests among steered ones are what the reference says without any edit, and say nothing of edits."""
    for answer in sent.answers["plain"]:
        assert not answer.steering
        check_logprobs(oracle, answer, sent.kind.grammar)
        for choice in answer.choices:
            assert "steering" not in choice.shown
            assert ("probes" in choice.shown) == ("probes" not in answer.body)
    check_effect(oracle, sent.others)
