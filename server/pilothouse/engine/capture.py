"""Activations read offline through the serving engine's own sites, for extraction and training."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32, ModelShape
from pilothouse.engine.inprocess import encode_item
from pilothouse.engine.launch import prepare_environment
from pilothouse.engine.options import engine_options
from pilothouse.engine.support import model_shape, require_supported_config
from pilothouse.engine.versions import require_supported_vllm


class CapturingEngine:
    """An in-process vLLM whose sites keep the whole stream. Implements `ActivationSource` and `TokenLocator`.

    Compiled and batched like a server; prefix caching is off, since cached positions are not forwarded.
    """

    def __init__(self, model: str, served_name: str | None = None, **engine_arguments: Any) -> None:
        require_supported_vllm()
        prepare_environment()
        from vllm import LLM, SamplingParams

        layout = EngineLayout(capture=True, rows=1, rows_per_plan=1, readouts=1)
        options = {"enable_prefix_caching": False, "disable_log_stats": True, **engine_arguments}
        self._llm = LLM(model=model, **options, **engine_options(layout))
        config = self._llm.llm_engine.vllm_config
        require_supported_config(config)
        shape = model_shape(config, None)
        self._shape = replace(shape, model=served_name or model)
        self._params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)

    @property
    def shape(self) -> ModelShape:
        return self._shape

    def encode(self, item: str | Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> list[int]:
        return encode_item(self._llm.get_tokenizer(), item, add_generation_prompt)

    def offsets(self, item: str | Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
        return token_offsets(self._llm.get_tokenizer(), item)

    def read(self, prompts: Sequence[Sequence[int]], layers: Sequence[int]) -> list[dict[int, Float32]]:
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        self._llm.collective_rpc("pilothouse_captures")
        self._llm.generate(inputs, self._params, use_tqdm=False)
        captured: dict[str, dict[int, bytes]] = {}
        # Tensor-parallel ranks keep the same, pipeline stages each their own layers.
        for rank in self._llm.collective_rpc("pilothouse_captures"):
            for request, layer, stream in rank:
                captured.setdefault(request, {})[layer] = stream
        in_order = [captured[name] for name in sorted(captured, key=_number)]
        return [
            {layer: self._rows(streams[layer], len(prompt)) for layer in layers}
            for prompt, streams in zip(prompts, in_order, strict=True)
        ]

    def _rows(self, stream: bytes, n_tokens: int) -> Float32:
        return np.frombuffer(stream, dtype=np.float32).reshape(-1, self._shape.d_model)[:n_tokens]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


def token_offsets(tokenizer: Any, item: str | Sequence[Mapping[str, str]]) -> list[tuple[int, int]]:
    """`TokenLocator.offsets` by a Hugging Face tokenizer. ArtefactError for those not written in Rust, and for a chat
    template that rewrites the content of the last message beyond the white space around it."""
    if not getattr(tokenizer, "is_fast", False):
        raise ArtefactError("the model's tokenizer cannot tell which characters a token stands for")
    if isinstance(item, str):
        text, first, content = item, 0, item
    else:
        content = item[-1]["content"]
        text = tokenizer.apply_chat_template(list(item), tokenize=False)
        first = _content_starts(tokenizer, item, text)
    encoded = tokenizer(text, add_special_tokens=isinstance(item, str), return_offsets_mapping=True)
    clipped = ((max(start - first, 0), min(stop - first, len(content))) for start, stop in encoded["offset_mapping"])
    return [(start, stop) if start < stop else (0, 0) for start, stop in clipped]


def _content_starts(tokenizer: Any, chat: Sequence[Mapping[str, str]], text: str) -> int:
    """Where the first character of the last message's content is, or would be, in the rendered chat."""
    content, mark = chat[-1]["content"], "\ue000"
    # The words may well occur before and after the message: a character of no script shows where the template puts it.
    start: int = tokenizer.apply_chat_template([*chat[:-1], {**chat[-1], "content": mark}], tokenize=False).rfind(mark)
    bare = content.strip()
    if start >= 0 and text.startswith(content, start):
        return start
    if start >= 0 and bare and text.startswith(bare, start):
        return start - content.index(bare)
    raise ArtefactError("the chat template rewrites the answer, so characters of it cannot be found among its tokens")


def _number(request_id: str) -> int:
    """vLLM numbers offline requests in order and appends random characters."""
    match = re.match(r"\d+", request_id)
    if match is None:
        raise ValueError(f"unexpected request id {request_id}")
    return int(match[0])
