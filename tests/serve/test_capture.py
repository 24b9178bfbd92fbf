"""What extraction and training read is what Hugging Face computes at the same sites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine_support.harness import Reference

from pilothouse.engine.capture import CapturingEngine
from pilothouse.harbor.paths import model_dir

pytestmark = pytest.mark.engine

CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]


def streams(reference: Reference, tokens: list[int]) -> dict[int, Any]:
    """resid_post of every layer by forward hooks, [n_tokens, d_model]."""
    found: dict[int, Any] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[layer] = (output[0] if isinstance(output, tuple) else output).reshape(len(tokens), -1).numpy()

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(reference.blocks)]
    with torch.inference_mode():
        reference.model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return found


def test_captured_streams_equal_hugging_face(reference: Reference, tokenizer: Any) -> None:
    source = CapturingEngine(
        str(model_dir()), "harbor", dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20
    )
    try:
        assert (source.shape.model, source.shape.d_model, source.shape.n_layers) == ("harbor", 256, 6)
        texts = ["The capital of Spain is Madrid.", "A young dog is a puppy.", "Two plus two is four. " * 12]
        prompts = [*(source.encode(text) for text in texts), source.encode(CHAT)]
        assert prompts[0] == tokenizer.encode(texts[0])
        expected = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=False)
        assert prompts[-1] == list(expected)
        for prompt, read in zip(prompts, source.read(prompts, [0, 3, 5]), strict=True):
            truth = streams(reference, prompt)
            assert sorted(read) == [0, 3, 5]
            for layer, stream in read.items():
                assert stream.shape == (len(prompt), 256)
                np.testing.assert_allclose(stream, truth[layer], atol=1e-4 * float(truth[layer].std()), rtol=1e-4)
    finally:
        source.close()
