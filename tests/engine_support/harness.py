"""Drives a real vLLM engine offline with plans, and the same model in Hugging Face with forward hooks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pilothouse.core.config import EngineLayout
from pilothouse.core.messages import (
    DIRECTIONS_KEY,
    PLAN_KEY,
    READING_KEY,
    directions_encoder,
    plan_encoder,
    reading_decoder,
)
from pilothouse.core.plans import Plan, edit_spans
from pilothouse.core.sites import Float32
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.client import Courier
from pilothouse.engine.options import engine_options
from pilothouse.engine.wire import resolve


@dataclass
class Result:
    """One generated sequence: greedy tokens, log-probabilities of each, and what was reported of its positions."""

    token_ids: list[int]
    logprobs: list[float]
    track: ChoiceTrack
    cached_tokens: int


class Engine:
    """An in-process vLLM with sites."""

    def __init__(self, model: Path, layout: EngineLayout, **options: Any) -> None:
        from vllm import LLM

        arguments = {
            "kv_cache_memory_bytes": 64 << 20,
            "max_model_len": 256,
            "dtype": "float32",
            "enable_prefix_caching": True,
            "disable_log_stats": False,
            "skip_tokenizer_init": True,
            **options,
        }
        self.layout = layout
        self.llm = LLM(model=str(model), **arguments, **engine_options(layout))
        self._courier = Courier(1 << 30)
        self._tracks: dict[str, ChoiceTrack] = {}
        self._process = self.llm.llm_engine.output_processor.process_outputs
        self.llm.llm_engine.output_processor.process_outputs = self._process_outputs
        self._ids = itertools.count()

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        plans: Sequence[Plan | None],
        max_tokens: int = 8,
        **sampling: Any,
    ) -> list[Result]:
        """All prompts in one batch, each with its own plan."""
        from vllm import SamplingParams

        engine = self.llm.llm_engine
        order, finished = [], {}
        for prompt, plan in zip(prompts, plans, strict=True):
            params = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=0, ignore_eos=True, **sampling)
            track = ChoiceTrack(len(prompt), len(plan.readouts) if plan else 0)
            if plan is not None and not plan.empty:
                self._attach(params, plan, len(prompt))
            request_id = engine.add_request(f"r{next(self._ids)}", {"prompt_token_ids": list(prompt)}, params)
            self._tracks[request_id] = track
            order.append((request_id, track))
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    finished[output.request_id] = output
        results = []
        for request_id, track in order:
            output = next(o for name, o in finished.items() if request_id.startswith(name + "-") or name == request_id)
            best = output.outputs[0]
            logprobs = [entry[token].logprob for entry, token in zip(best.logprobs, best.token_ids, strict=True)]
            results.append(Result(list(best.token_ids), logprobs, track, output.num_cached_tokens or 0))
        return results

    def _attach(self, params: Any, plan: Plan, n_prompt: int) -> None:
        wire, _ = resolve(plan, n_prompt, self.layout)
        params.extra_args = {PLAN_KEY: plan_encoder.encode(wire)}
        parcel = self._courier.parcel([e.direction for e in plan.edits] + [r.direction for r in plan.readouts])
        if parcel is not None:
            params.extra_args[DIRECTIONS_KEY] = directions_encoder.encode(parcel)
        if plan.prompt_scores:
            params.skip_reading_prefix_cache = True

    def _process_outputs(self, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in outputs:
            transfer = output.kv_transfer_params
            raw = transfer.pop(READING_KEY, None) if transfer else None
            if raw is not None:
                output.kv_transfer_params = transfer or None
                self._tracks[output.request_id].add(reading_decoder.decode(raw))
        return self._process(outputs, *args, **kwargs)

    def preemptions(self) -> int:
        """How often a running request was put back, so far."""
        return sum(int(m.value) for m in self.llm.get_metrics() if m.name == "vllm:num_preemptions")

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()

    def reset_cache(self) -> None:
        self.llm.reset_prefix_cache()


class Reference:
    """Hugging Face in float32: the whole sequence at once, edits and readouts by forward hooks."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.model.eval()
        self.blocks = self.model.model.layers if hasattr(self.model, "model") else self.model.transformer.h

    @torch.inference_mode()
    def run(self, prompt: Sequence[int], generated: Sequence[int], plan: Plan | None) -> tuple[Float32, Float32]:
        """Teacher-forced: log-probabilities [n_generated, vocabulary] and raw readouts [n_tokens, n_readouts]."""
        plan = plan or Plan()
        tokens = [*prompt, *generated]
        spans = edit_spans(plan.edits, len(prompt))
        raw = np.zeros((len(tokens), len(plan.readouts)), dtype=np.float64)

        def hook(layer: int) -> Any:
            def edit(module: Any, args: Any, output: Any) -> Any:
                stream = output[0] if isinstance(output, tuple) else output
                for k, readout in enumerate(plan.readouts):
                    if layer in readout.direction.layers:
                        raw[:, k] += stream[0].double().numpy() @ readout.direction.layers[layer].astype(np.float64)
                for change, (start, stop) in zip(plan.edits, spans, strict=True):
                    if layer in change.coefficients:
                        row = torch.from_numpy(np.asarray(change.direction.layers[layer], dtype=np.float32).copy())
                        stream = stream.clone()
                        stream[0, start:stop] += change.coefficients[layer] * row
                return (stream, *output[1:]) if isinstance(output, tuple) else stream

            return edit

        handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(self.blocks)]
        try:
            logits = self.model(torch.tensor([tokens])).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        predicted = torch.log_softmax(logits[len(prompt) - 1 : len(tokens) - 1], dim=-1)
        return predicted.numpy(), raw.astype(np.float32)
