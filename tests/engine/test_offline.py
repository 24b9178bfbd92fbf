"""The offline steered engine against Hugging Face with forward hooks."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from engine_support.harness import Reference
from engine_support.plans import edit, prompts, readout
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pilothouse.core.errors import ArtefactError, BadRequest, EngineGap
from pilothouse.core.messages import Reading
from pilothouse.core.plans import Plan
from pilothouse.core.serving import SteeredModel
from pilothouse.core.sites import Float32
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.offline import OfflineEngine

pytestmark = pytest.mark.engine

VOCABULARY, END, MAX_LENGTH = 512, 511, 128
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w7{% endif %}"
)


@pytest.fixture(scope="module")
def model(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama with a tokenizer whose tokens are words: w0, w1, ..."""
    folder = tmp_path_factory.mktemp("offline") / "llama"
    shutil.copytree(llama, folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", eos_token=f"w{END}", chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[OfflineEngine]:
    before = dict(os.environ)
    made = OfflineEngine(
        str(model),
        "random-llama",
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_LENGTH,
        kv_cache_memory_bytes=64 << 20,
        block_size=32,
    )
    yield made
    made.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


def plans(rng: np.random.Generator) -> list[Plan]:
    """Plain, steered, read, and steered and read, at layers before, at and behind those that are read."""
    first, second = readout(rng, [2]), readout(rng, [0, 3])
    return [
        Plan(),
        Plan((edit(rng, [1], "all", 2.0),)),
        Plan((), (first,)),
        Plan((edit(rng, [1], "generation", 2.0), edit(rng, [2], "prompt", 2.0)), (first, second)),
        Plan((edit(rng, [2, 3], "all", 2.0),), (second,)),
    ]


def test_a_mixed_batch_generates_and_reads_as_the_reference_does(engine: OfflineEngine, reference: Reference) -> None:
    rng = np.random.default_rng(3)
    asked = plans(rng)
    given = prompts(rng, len(asked), 40)
    model: SteeredModel = engine
    # A second round meets a warm prefix cache.
    for answers in (model.generate(given, asked, 6) for _ in range(2)):
        for prompt, plan, answer in zip(given, asked, answers, strict=True):
            predicted, raw = reference.run(prompt, answer.token_ids, plan)
            chosen = predicted[np.arange(len(answer.token_ids)), answer.token_ids]
            assert (predicted.max(axis=1) - chosen).max() < 1e-4
            assert answer.readouts.shape == raw.shape
            assert np.isnan(answer.readouts[-1]).all()
            np.testing.assert_allclose(answer.readouts[:-1], raw[:-1], rtol=1e-4, atol=1e-4)
            assert answer.text == " ".join(f"w{token}" for token in answer.token_ids if token != END)
            assert (len(answer.token_ids), answer.finish_reason) == (6, "length") or answer.token_ids[-1] == END


def test_prompt_log_probabilities_are_those_of_the_steered_model(engine: OfflineEngine, reference: Reference) -> None:
    rng = np.random.default_rng(4)
    asked = plans(rng)
    given = prompts(rng, len(asked), 40)
    found = engine.logprobs(given, asked)
    plain = engine.logprobs(given, [Plan()] * len(asked))
    for prompt, plan, ours, unsteered in zip(given, asked, found, plain, strict=True):
        # Teacher forcing from the first token on, with positions still counted from the whole prompt.
        expected = _teacher_forced(reference, prompt, plan)
        assert np.isnan(ours[0])
        np.testing.assert_allclose(ours[1:], expected, atol=1e-4)
        if plan.edits:
            assert np.abs(ours[1:] - unsteered[1:]).max() > 0.01


def _teacher_forced(reference: Reference, prompt: list[int], plan: Plan) -> Float32:
    captured: list[torch.Tensor] = []
    handle = reference.model.lm_head.register_forward_hook(lambda module, args, output: captured.append(output))
    try:
        reference.run(prompt, [], plan)
    finally:
        handle.remove()
    table = torch.log_softmax(captured[0][0], dim=-1)
    return np.array([float(table[i - 1, token].detach()) for i, token in enumerate(prompt)][1:], dtype=np.float32)


def test_texts_and_chats_become_tokens_and_tokens_texts(engine: OfflineEngine) -> None:
    assert engine.encode("w5 w6") == [5, 6]
    chat = [{"role": "w1", "content": "w2 w3"}]
    assert engine.encode(chat) == [1, 2, 3]
    assert engine.encode(chat, add_generation_prompt=True) == [1, 2, 3, 7]
    assert engine.decode([5, END, 6]) == "w5 w6"
    assert (engine.shape.model, engine.shape.d_model, engine.shape.n_layers) == ("random-llama", 64, 4)


def test_one_bad_prompt_or_plan_fails_the_call_and_leaves_the_engine_whole(engine: OfflineEngine) -> None:
    rng = np.random.default_rng(5)
    good = [1, 2, 3]
    with pytest.raises(ArtefactError, match=f"{MAX_LENGTH} tokens"):
        engine.generate([good, [1] * MAX_LENGTH], [Plan()] * 2, 2)
    too_many = Plan((), tuple(readout(rng, [1]) for _ in range(17)))
    with pytest.raises(BadRequest, match="17 probes"):
        engine.generate([good, good], [Plan(), too_many], 2)
    assert len(engine.generate([good], [Plan()], 2)[0].token_ids) == 2


@pytest.mark.parametrize("measure", ["generate", "logprobs"])
def test_an_edit_that_the_engine_left_out_is_an_error(
    measure: str, engine: OfflineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in = ChoiceTrack.add

    def unedited(track: ChoiceTrack, reading: Reading) -> None:
        runs = tuple((start, count, 0) for start, count, _ in reading.runs)
        take_in(track, msgspec.structs.replace(reading, runs=runs))

    def run(plan: Plan) -> object:
        call = partial(engine.generate, max_tokens=3) if measure == "generate" else engine.logprobs
        return call(asked, [plan])

    rng = np.random.default_rng(17)
    asked = prompts(rng, 1)
    steered, read = Plan((edit(rng, [1], "prompt"),)), Plan(readouts=(readout(rng, [2]),))
    assert run(steered)
    monkeypatch.setattr(ChoiceTrack, "add", unedited)
    assert run(read)
    with pytest.raises(EngineGap, match="not steered as asked"):
        run(steered)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal sends it: programs that were started in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_call_that_is_interrupted_gives_its_requests_up(engine: OfflineEngine) -> None:
    given, asked = [[1, 2, 3]] * 64, [Plan()] * 64
    before = engine.generate(given[:1], asked[:1], 4)[0].token_ids

    def work() -> None:
        for _ in range(200):
            engine.generate(given, asked, MAX_LENGTH - 3)

    # As Ctrl-C does it, in the midst of some thousand steps.
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    timer.join()
    assert engine.generate(given[:1], asked[:1], 4)[0].token_ids == before
