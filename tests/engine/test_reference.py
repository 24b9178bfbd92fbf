"""The slow and obvious path against Hugging Face with hooks, and its attention against other people's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from engine_support import plans as make
from engine_support.harness import Engine, Reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention

from pilothouse.core.edits import OPERATIONS
from pilothouse.core.plans import Plan
from pilothouse.engine.reference import NoReferenceError, ReferenceAnswer, ReferenceRequest, causal_attention, decode


def ask(engine: Engine, prompt: list[int], generated: list[int], plan: Plan) -> ReferenceAnswer:
    request = msgspec.msgpack.encode(ReferenceRequest.of(prompt, generated, plan))
    return decode(engine.llm.collective_rpc("pilothouse_reference", args=(request,)))


@pytest.mark.engine
@pytest.mark.parametrize("which", ["compiled_llama", "eager_qwen3"])
def test_it_agrees_with_hugging_face_and_the_engine_with_both(which: str, request: pytest.FixtureRequest) -> None:
    engine, hugging_face = request.getfixturevalue(which)
    rng = np.random.default_rng(21)
    prompts, plans = make.prompts(rng, 36, longest=40), make.mixed_plans(rng, 12) + make.chained_plans(rng, 12)
    changes = [make.chained_edit(rng, op, [0, 1], "all") for op in 2 * OPERATIONS]
    plans += [make.gated(rng, change, "token", 0.0) for change in changes]
    scored = 0
    for prompt, plan, result in zip(prompts, plans, engine.run(prompts, plans, 6), strict=True):
        answer = ask(engine, prompt, result.token_ids, plan)
        n_tokens = len(prompt) + len(result.token_ids)
        logprobs = answer.table(n_tokens)[len(prompt) - 1 : -1]
        expected_logprobs, expected_scores = hugging_face.run(prompt, result.token_ids, plan)
        np.testing.assert_allclose(logprobs, expected_logprobs, atol=1e-4)
        served = [float(row[token]) for row, token in zip(logprobs, result.token_ids, strict=True)]
        np.testing.assert_allclose(result.logprobs, served, atol=1e-4)
        if plan.readouts:
            scores = answer.scores(n_tokens)
            tolerance = 1e-4 * float(expected_scores.std())
            np.testing.assert_allclose(scores, expected_scores, atol=tolerance)
            start = 0 if plan.prompt_scores else len(prompt) - 1
            measured = result.track.scores(start, n_tokens - 1)
            np.testing.assert_allclose(measured, scores[start:-1], atol=tolerance)
            scored += measured.size
    assert scored > 100


@pytest.mark.engine
def test_it_leaves_the_serving_path_as_it_was(compiled_llama: tuple[Engine, Reference]) -> None:
    engine, _ = compiled_llama
    rng = np.random.default_rng(22)
    prompt, plan = make.prompts(rng, 1)[0], Plan((make.edit(rng, [1], "all", 3.0),), (make.readout(rng, [2]),))
    before = engine.run([prompt], [plan], 5)[0]
    ask(engine, prompt, [], plan)
    after = engine.run([prompt], [plan], 5)[0]
    assert (after.token_ids, after.logprobs) == (before.token_ids, before.logprobs)


def test_no_answer_says_why() -> None:
    with pytest.raises(NoReferenceError, match="MambaMixer"):
        decode([None, "MambaMixer of Jamba is not plain causal attention"])
    with pytest.raises(NoReferenceError, match="no rank"):
        decode([None, None])


def tensors(seed: int, n_heads: int, n_kv_heads: int, n_tokens: int, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heads = (n_heads, n_kv_heads, n_kv_heads)
    return [torch.randn(n, n_tokens, size, generator=generator, dtype=torch.float64) for n in heads]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (4, 1), (6, 2)]), st.integers(1, 20), st.integers(1, 25))
def test_grouped_heads_and_windows_equal_torch(seed: int, heads: tuple[int, int], n_tokens: int, window: int) -> None:
    query, key, value = tensors(seed, *heads, n_tokens)
    distance = torch.arange(n_tokens)[:, None] - torch.arange(n_tokens)[None, :]
    seen = (distance >= 0) & (distance < window)
    expected = scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=seen[None, None], scale=0.3, enable_gqa=True
    )[0]
    torch.testing.assert_close(causal_attention(query, key, value, 0.3, window=window), expected)


def mask(n_tokens: int) -> torch.Tensor:
    return torch.full((n_tokens, n_tokens), -torch.inf, dtype=torch.float64).triu(1)[None, None]


def module(**attributes: Any) -> Any:
    return SimpleNamespace(training=False, **attributes)


def test_a_soft_cap_is_that_of_gemma_2() -> None:
    query, key, value = tensors(1, 4, 2, 9)
    layer = module(num_key_value_groups=2, attn_logit_softcapping=1.5, config=None, head_dim=8)
    expected, _ = gemma2_attention(layer, query[None], key[None], value[None], mask(9), scaling=0.9, softcap=1.5)
    found = causal_attention(query, key, value, 0.9, soft_cap=1.5)
    torch.testing.assert_close(found.transpose(0, 1), expected[0])
    assert not torch.allclose(found, causal_attention(query, key, value, 0.9), atol=1e-2)


def test_sinks_are_those_of_gpt_oss() -> None:
    query, key, value = tensors(2, 4, 2, 9)
    sinks = torch.linspace(-1, 2, 4, dtype=torch.float64)
    layer = module(num_key_value_groups=2, sinks=sinks)
    expected, _ = gpt_oss_attention(layer, query[None], key[None], value[None], mask(9), scaling=0.9)
    torch.testing.assert_close(causal_attention(query, key, value, 0.9, sinks=sinks).transpose(0, 1), expected[0])


def test_slopes_are_those_of_bloom() -> None:
    n_heads, n_tokens = 4, 9
    query, key, value = tensors(3, n_heads, n_heads, n_tokens)
    bias = build_alibi_tensor(torch.ones(1, n_tokens), n_heads, torch.float64)[:, None]
    expected = torch.softmax(0.5 * query @ key.transpose(1, 2) + bias[:, 0] + mask(n_tokens)[0], dim=-1) @ value
    slopes = torch.tensor([2.0 ** (-8 * (i + 1) / n_heads) for i in range(n_heads)])
    torch.testing.assert_close(causal_attention(query, key, value, 0.5, alibi_slopes=slopes), expected)
