"""Drives a real vLLM engine offline with plans, and the same model in Hugging Face with forward hooks."""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import envs

from engine_support.changes import Float64, first_met, gate_margin, visit
from engine_support.readings import take_readings
from pilothouse.core.config import EngineLayout
from pilothouse.core.messages import (
    DIRECTIONS_KEY,
    PLAN_KEY,
    Reading,
    directions_encoder,
    plan_encoder,
)
from pilothouse.core.plans import END, Plan, edit_spans
from pilothouse.core.sites import Float32
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.courier import Courier
from pilothouse.engine.options import engine_options
from pilothouse.engine.wire import resolve

HERE: list[Engine] = []
"""Engines in this process that are not shut down yet."""


@dataclass
class Result:
    """One generated sequence: its tokens, log-probabilities of each, and what was reported of its positions.

    runs: the stretches [first, stop) that were forwarded one after the other; edited: positions reported as edited;
    ended: why it ended.
    """

    token_ids: list[int]
    logprobs: list[float]
    track: ChoiceTrack
    cached_tokens: int
    runs: list[tuple[int, int]]
    edited: int
    ended: tuple[str | None, int | str | None]


@dataclass(eq=False)
class Job:
    """One request under way: what arrived for each of its sequences and, once all have finished, their results."""

    name: str
    prompt: list[int]
    plan: Plan
    tracks: dict[str, ChoiceTrack]
    readings: dict[str, list[Reading]]
    results: list[Result] = field(default_factory=list)
    aborted: bool = False


class Engine:
    """A vLLM driven step by step: with sites, or stock when there is no layout.

    `in_process` keeps scheduler and worker in this process, where tests can look at them and break them on purpose.
    `lora` is the adapter of the requests that are submitted from now on.
    """

    def __init__(self, model: Path, layout: EngineLayout | None, *, in_process: bool = False, **options: Any) -> None:
        arguments = {
            "model": str(model),
            "kv_cache_memory_bytes": 64 << 20,
            "max_model_len": 256,
            "dtype": "float32",
            "enable_prefix_caching": True,
            "disable_log_stats": False,
            "skip_tokenizer_init": True,
            **options,
            **(engine_options(layout) if layout else {}),
        }
        self._layout = layout
        self.llm = _start_here(arguments) if in_process else _start(arguments)
        self._courier = Courier(1 << 30)
        self._jobs: dict[str, Job] = {}
        self._process = self.llm.llm_engine.output_processor.process_outputs
        self.llm.llm_engine.output_processor.process_outputs = self._process_outputs
        self.lora: Any = None
        self._ids = itertools.count()
        self._closed = False
        self._preempted = 0
        if in_process:
            HERE.append(self)
            self._count_preemptions()

    @property
    def layout(self) -> EngineLayout:
        assert self._layout is not None, "a stock engine has no layout"
        return self._layout

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        plans: Sequence[Plan | None],
        max_tokens: int = 8,
        **sampling: Any,
    ) -> list[Result]:
        """The first sequence of each prompt, all in one batch, each with its own plan."""
        jobs = [self.submit(p, plan, max_tokens, **sampling) for p, plan in zip(prompts, plans, strict=True)]
        self.drain()
        return [job.results[0] for job in jobs]

    def submit(self, prompt: Sequence[int], plan: Plan | None, max_tokens: int, **sampling: Any) -> Job:
        """Hand over one request; greedy unless `sampling` says otherwise."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        plan, prompt, name = plan or Plan(), list(prompt), f"r{next(self._ids)}"
        salt = {"cache_salt": sampling.pop("cache_salt")} if "cache_salt" in sampling else {}
        settings = {"temperature": 0.0, "logprobs": 0, "ignore_eos": True, "max_tokens": max_tokens, **sampling}
        params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **settings)
        if not plan.empty:
            self._attach(params, plan, len(prompt))
        request_id = self.llm.llm_engine.add_request(
            name, {"prompt_token_ids": prompt, **salt}, params, lora_request=self.lora
        )
        # Several sequences are as many requests to the engine, numbered in front.
        ids = [request_id] if params.n == 1 else [f"{i}_{request_id}" for i in range(params.n)]
        tracks = {i: ChoiceTrack(len(prompt), len(plan.readouts)) for i in ids}
        job = self._jobs[name] = Job(name, prompt, plan, tracks, {i: [] for i in ids})
        return job

    def step(self) -> list[Job]:
        """One step of the engine; the jobs that are complete with it."""
        finished = []
        for output in self.llm.llm_engine.step():
            job = self._jobs[output.request_id]
            cached = output.num_cached_tokens or 0
            for choice, request_id in zip(output.outputs, job.tracks, strict=True):
                job.results.append(_result(choice, job.tracks[request_id], job.readings[request_id], cached))
            finished.append(self._jobs.pop(job.name))
        return finished

    def abort(self, job: Job) -> None:
        """Give a job up, wherever it is."""
        if job.name in self._jobs:
            job.aborted = True
            self.llm.llm_engine.abort_request([job.name])
            del self._jobs[job.name]

    def drain(self, most_steps: int = 20_000) -> None:
        """Step until nothing is left to do; AssertionError when that takes suspiciously long."""
        for _ in range(most_steps):
            if not self.busy:
                return
            self.step()
        raise AssertionError(f"still busy after {most_steps} steps: {sorted(self._jobs)}")

    def abandon(self) -> None:
        """Give up all jobs that are not complete."""
        for job in list(self._jobs.values()):
            self.abort(job)

    @property
    def busy(self) -> bool:
        return bool(self.llm.llm_engine.has_unfinished_requests())

    @property
    def scheduler(self) -> Any:
        """The scheduler of an engine that runs in this process."""
        return self.llm.llm_engine.engine_core.engine_core.scheduler

    @property
    def board(self) -> Any:
        """The worker's board of an engine that runs in this process."""
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner.pilothouse_board

    def _attach(self, params: Any, plan: Plan, n_prompt: int) -> None:
        wire, _ = resolve(plan, n_prompt, self.layout)
        params.extra_args = {PLAN_KEY: plan_encoder.encode(wire)}
        parcel = self._courier.parcel(plan.directions)
        if parcel is not None:
            params.extra_args[DIRECTIONS_KEY] = directions_encoder.encode(parcel)

    def _process_outputs(self, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in outputs:
            for reader, reading in take_readings(output):
                for job in self._jobs.values():
                    if reader in job.tracks:
                        job.readings[reader].append(reading)
                        job.tracks[reader].add(reading)
        return self._process(outputs, *args, **kwargs)

    def _count_preemptions(self) -> None:
        preempt = self.scheduler._preempt_request

        def counting(*args: Any, **kwargs: Any) -> None:
            self._preempted += 1
            preempt(*args, **kwargs)

        self.scheduler._preempt_request = counting

    def preemptions(self) -> int:
        """How often a running request was put back, so far, in an engine of this process. vLLM's own metric is that of
        the engine that was started last."""
        return self._preempted

    def close(self) -> None:
        """Shut down. Engines in this process share what the first to go takes along, so they wait for the last one."""
        if self not in HERE:
            self.llm.llm_engine.engine_core.shutdown()
            return
        self._closed = True
        if all(engine._closed for engine in HERE):
            for engine in HERE[1:]:
                engine.llm.llm_engine.engine_core._finalizer.detach()
            HERE[0].llm.llm_engine.engine_core.shutdown()
            HERE.clear()

    def reset_cache(self) -> None:
        assert self.llm.reset_prefix_cache(), "blocks were still in use"


def tight_engine(model: Path, blocks: int = 14) -> Engine:
    """In this process and eager, where all is scarce: chunks of 16, four rows, four columns, and so few blocks that it
    preempts, the more so since requests begin before the cache has room for all of their prompt."""
    return Engine(
        model,
        EngineLayout(rows=4, rows_per_plan=4, chains=2, readouts=4),
        in_process=True,
        enforce_eager=True,
        block_size=32,
        num_gpu_blocks_override=blocks,
        long_prefill_token_threshold=16,
        scheduler_reserve_full_isl=False,
    )


def _result(choice: Any, track: ChoiceTrack, readings: list[Reading], cached: int) -> Result:
    logprobs = [entry[token].logprob for entry, token in zip(choice.logprobs, choice.token_ids, strict=True)]
    runs, edited = list[tuple[int, int]](), 0
    for start, count, changed in itertools.chain.from_iterable(reading.runs for reading in readings):
        edited += changed
        if runs and runs[-1][1] == start:
            start, count = runs[-1][0], start + count - runs.pop()[0]
        runs.append((start, start + count))
    ended = (choice.finish_reason, choice.stop_reason)
    track.token_ids, track.finish_reason = list(choice.token_ids), choice.finish_reason
    return Result(list(choice.token_ids), logprobs, track, cached, runs, edited, ended)


def _start(arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(**arguments)


def _start_here(arguments: dict[str, Any]) -> Any:
    """vLLM with its engine in this process. It warns of matters of its own, and would claim this process's cores."""
    here = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    before = {name: os.environ.get(name) for name in here}
    os.environ.update(here)
    set_num_threads = torch.set_num_threads
    # So small a model gains nothing from more threads, and loses much where others use the cores.
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            started = _start({**arguments, "distributed_executor_backend": "uni"})
        # vLLM's own handlers write to what pytest captures for one test only; pytest has the records anyway.
        logging.getLogger("vllm").handlers.clear()
        return started
    finally:
        torch.set_num_threads = set_num_threads
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        # The engine core froze vLLM's settings for this process; engines that start later must find their own.
        envs.disable_envs_cache()


def blocks_of(model: Any) -> Any:
    """The decoder blocks of a model of Hugging Face: the outermost list of as many modules as it has layers."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return next(found for found in lists if len(found) == model.config.get_text_config().num_hidden_layers)


class Reference:
    """Hugging Face in float32: the whole sequence at once, edits and readouts by forward hooks.

    nearest: how near the last run came to a gate's level or to where a clamped feature begins to fire, in spreads of
    what is read; where that is next to nothing, what float32 loses decides, and another engine may decide otherwise.
    """

    nearest: float

    def __init__(self, model: Path, **options: Any) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **options)
        self.model.eval()
        self.blocks = blocks_of(self.model)

    @torch.inference_mode()
    def run(self, prompt: Sequence[int], generated: Sequence[int], plan: Plan | None) -> tuple[Float32, Float32]:
        """Teacher-forced: log-probabilities [n_generated, vocabulary] and raw readouts [n_tokens, n_readouts].

        What a latch sees up to the position where it opens does not depend on what it does behind it, so each is found
        by a run with those that open before it.
        """
        plan = plan or Plan()
        latched = {i for i, edit in enumerate(plan.edits) if edit.gate is not None and edit.gate.latched}
        opened = [END] * len(plan.edits)
        while True:
            margins: list[float] = []
            predicted, raw = self._run(prompt, generated, plan, opened, margins)
            found = {i: first_met(plan.edits[i], plan, raw) for i in latched if opened[i] == END}
            first = min(found.values(), default=END)
            if first == END:
                self.nearest = min([gate_margin(plan, raw[:-1]), *margins])
                return predicted, raw.astype(np.float32)
            for i, position in found.items():
                if position == first:
                    opened[i] = first

    def _run(
        self,
        prompt: Sequence[int],
        generated: Sequence[int],
        plan: Plan,
        opened: Sequence[int],
        margins: list[float],
    ) -> tuple[Float32, Float64]:
        tokens = [*prompt, *generated]
        spans = edit_spans(plan.edits, len(prompt))
        raw = np.zeros((len(tokens), len(plan.readouts)), dtype=np.float64)

        def hook(layer: int) -> Any:
            def edit(module: Any, args: Any, output: Any) -> Any:
                stream = output[0] if isinstance(output, tuple) else output
                for k, readout in enumerate(plan.readouts):
                    if layer in readout.direction.layers:
                        raw[:, k] += stream[0].double().numpy() @ readout.direction.layers[layer].astype(np.float64)
                after = visit(stream[0].double().numpy(), layer, plan, spans, raw, opened, margins)
                stream = torch.from_numpy(after.astype(np.float32))[None]
                return (stream, *output[1:]) if isinstance(output, tuple) else stream

            return edit

        handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(self.blocks)]
        try:
            logits = self.model(torch.tensor([tokens])).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        predicted = torch.log_softmax(logits[len(prompt) - 1 : len(tokens) - 1], dim=-1)
        return predicted.numpy(), raw
