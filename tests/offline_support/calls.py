"""Prompts with steering and probes for the in-process LLM of the embedded model, and the plans that they mean."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_support.harness import Reference
from safetensors.torch import load_file, save_file

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Edit, PositionRange
from pilothouse.core.plans import Plan, Readout
from pilothouse.core.sites import Float32
from pilothouse.harbor.paths import model_dir, probes_dir, vectors_dir
from pilothouse.probing import Probe, load_probes
from pilothouse.steering import load_vectors

SMALL: dict[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 256,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "max_plans": 4,
}
"""An engine that starts soon, with fewer slots than the tests have plans."""

READS: dict[str, Any] = {"names": ["truthfulness"], "tokens": True, "prompt": True}
LONG = "The long road to the harbor was quiet. " * 6
D_MODEL = 256


@dataclass
class Call:
    """One prompt of a batch: what is asked, and the plan that it means."""

    prompt: Any
    steering: list[dict[str, Any]] | None
    probes: Any
    plan: Plan


def truthfulness() -> Probe:
    return load_probes(probes_dir())["truthfulness"]


def steered_and_read() -> Call:
    """A call whose slot, column and kept scores are all there when it comes again."""
    row = np.random.default_rng(31).normal(size=D_MODEL).astype(np.float32)
    edit = Edit("inline", Direction({2: row}), {2: 2.0}, "prompt", source="inline")
    entry = {"inline": {"layers": {2: row}}, "strength": 2.0, "positions": "prompt"}
    plan = Plan((edit,), (Readout("truthfulness", truthfulness().direction),))
    return Call(LONG, [entry], READS, plan)


def calls() -> list[Call]:
    """Plain, read, and steered in every way that a script can write it: by name, by array, by tensor, by list."""
    rng = np.random.default_rng(23)
    rows: list[Float32] = [(0.5 * rng.normal(size=D_MODEL)).astype(np.float32) for _ in range(3)]
    reads = (Readout("truthfulness", truthfulness().direction),)
    honest = load_vectors(vectors_dir())["honest"]
    named = Edit("honest", honest.direction, dict.fromkeys(honest.default_layers, 0.4), "generation")
    array = Edit("inline", Direction({3: rows[0]}), {3: 1.5}, "all", source="inline")
    part = Edit("inline", Direction({1: rows[1]}), {1: 2.0}, PositionRange(2, 6), source="inline")
    taken = Edit("inline", Direction({4: rows[2]}), {4: 1.0}, "all", op="ablate", source="inline")
    in_list = {"inline": {"layers": {"1": rows[1].tolist()}}, "strength": 2, "positions": {"from": 2, "to": 6}}
    tensor = {"inline": {"layers": {4: torch.from_numpy(rows[2])}}, "op": "ablate"}
    return [
        Call(LONG, None, None, Plan()),
        Call(LONG, None, READS, Plan((), reads)),
        Call(LONG, [{"vector": "honest", "strength": 0.4, "positions": "generation"}], READS, Plan((named,), reads)),
        Call(
            "What is the capital of Spain?",
            [{"inline": {"layers": {np.int64(3): rows[0]}}, "strength": np.float32(1.5)}],
            ("truthfulness",),
            Plan((array,), reads),
        ),
        Call({"prompt_token_ids": list(range(40, 75))}, [in_list, tensor], None, Plan((part, taken))),
    ]


def answered(llm: Any, asked: list[Call], **sampling: Any) -> list[Any]:
    """The outputs of a batch, greedy, of six tokens each."""
    from vllm import SamplingParams

    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 6, "ignore_eos": True, "logprobs": 0, **sampling})
    found = llm.generate(
        [call.prompt for call in asked],
        params,
        steering=[call.steering for call in asked],
        probes=[call.probes for call in asked],
        use_tqdm=False,
    )
    return list(found)


def check_logprobs(output: Any, plan: Plan, reference: Reference, tolerance: float = 5e-4) -> None:
    """The log-probability of every generated token, of every sequence."""
    for choice in output.outputs:
        predicted, _ = reference.run(output.prompt_token_ids, choice.token_ids, plan)
        expected = [float(predicted[i, token]) for i, token in enumerate(choice.token_ids)]
        found = [entry[token].logprob for entry, token in zip(choice.logprobs, choice.token_ids, strict=True)]
        np.testing.assert_allclose(found, expected, atol=tolerance)


def check_scores(output: Any, plan: Plan, reference: Reference) -> None:
    """The logit of every token that is shown, and of the prompt's end."""
    prompt = output.prompt_token_ids
    for choice in output.outputs:
        _, raw = reference.run(prompt, choice.token_ids, plan)
        logits, tolerance = truthfulness().logits(raw[:, 0]), 1e-3 * float(raw.std())
        shown = choice.probes["truthfulness"]
        np.testing.assert_allclose(shown["stats"]["prompt_end"], logits[len(prompt) - 1], atol=tolerance)
        np.testing.assert_allclose(shown["stats"]["mean"], logits[len(prompt) : -1].mean(), atol=tolerance)
        if "tokens" in shown:
            assert [entry["token_id"] for entry in shown["tokens"]] == list(choice.token_ids)
            assert shown["tokens"][-1]["logit"] is None
            measured = [entry["logit"] for entry in shown["tokens"][:-1]]
            np.testing.assert_allclose(measured, logits[len(prompt) : -1], atol=tolerance)
            before = [entry["logit"] for entry in shown["prompt_tokens"][1:]]
            np.testing.assert_allclose(before, logits[1 : len(prompt)], atol=tolerance)


def fine_tuned(folder: Path) -> Path:
    """The embedded model in `folder`, with noise on what its blocks add to the stream."""
    shutil.copytree(model_dir(), folder)
    weights = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(37)
    for name, tensor in weights.items():
        if "down_proj" in name or "o_proj" in name:
            noise = rng.normal(size=tuple(tensor.shape)).astype(np.float32)
            tensor += 0.5 * float(tensor.std()) * torch.from_numpy(noise)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def environment_as_it_was() -> Iterator[None]:
    """What an engine sets for its processes is not there afterwards."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
