"""vLLM's two schedulers with slots, driven without a model, by a worker that keeps its past in cache blocks.

As in a real worker each token reads what came before it through the request's block table, so a block that is shared
wrongly shows in every later score.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter, deque
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from engine_support.fake_model import (
    D_MODEL,
    LAYERS,
    Ask,
    enter,
    gate_bytes,
    leave,
    read,
    sample,
    step_bytes,
)
from engine_support.readings import take_readings
from pilothouse.core.config import LAYOUT_KEY, EngineLayout
from pilothouse.core.directions import Direction
from pilothouse.core.messages import (
    DIRECTIONS_KEY,
    ORDERS_ATTRIBUTE,
    PLAN_KEY,
    READINGS_ATTRIBUTE,
    Reading,
    StepCost,
    WireDirections,
    directions_encoder,
    orders_decoder,
    plan_encoder,
)
from pilothouse.core.tracks import ChoiceTrack
from pilothouse.engine.board import Board
from pilothouse.engine.courier import Courier
from pilothouse.engine.sites import Site, StepBuffers
from pilothouse.engine.wire import resolve

BLOCK = 4
MAX_LEN = 128
DIRECTION_BYTES = 4 * D_MODEL * len(LAYERS)

Mode = Literal["sync", "async", "async v2"]
MODES: tuple[Mode, ...] = ("sync", "async", "async v2")
"""One step at a time; one step ahead, as vLLM serves on a GPU; the same with the step outputs of its second runner."""


@dataclass
class _State:
    """What a worker keeps of a request between steps."""

    n_prompt: int
    tokens: list[int]
    blocks: list[int]
    computed: int


class FakeWorker:
    """Obeys orders with a real board, and checks at every token that the bank holds what the request's plan asks."""

    def __init__(self, layout: EngineLayout, asks: dict[str, Ask], seed: int) -> None:
        buffers = StepBuffers(512, layout, torch.device("cpu"))
        sites = {n: Site(buffers, layout, D_MODEL, torch.float32, first=n == LAYERS[0]) for n in LAYERS}
        self.board = Board(layout, buffers, sites)
        self.forwarded: list[dict[str, range]] = []
        self.with_plans = 0
        self._asks = asks
        self._states: dict[str, _State] = {}
        self._cache: dict[tuple[int, int], int] = {}
        self._shuffle = np.random.default_rng(seed)
        self._order: list[str] = []

    def execute(self, output: Any) -> Any:
        """Run one step. Steps must come in the order in which they were scheduled."""
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

        orders = getattr(output, ORDERS_ATTRIBUTE, None)
        if orders is not None:
            self.board.obey(orders_decoder.decode(orders))
        self._update(output)
        if not output.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        # A real batch is in no particular order either: condensed, reordered by the attention backend.
        batch = self._ordered(list(output.num_scheduled_tokens))
        sampled = self._forward(batch, output.num_scheduled_tokens)
        result = ModelRunnerOutput(batch, {r: i for i, r in enumerate(batch)}, sampled_token_ids=sampled)
        readings = self.board.readings()
        if readings is not None:
            self.with_plans += 1
            # As between processes: a batch that is known already is not described again.
            setattr(result, READINGS_ATTRIBUTE, pickle.loads(pickle.dumps(readings)))
        return result

    def _ordered(self, request_ids: list[str]) -> list[str]:
        """Most steps keep the order of the step before, where they run the same requests."""
        if set(request_ids) != set(self._order) or self._shuffle.random() < 0.2:
            self._order = [str(request_id) for request_id in self._shuffle.permutation(request_ids)]
        return self._order

    def _update(self, output: Any) -> None:
        for request_id in output.finished_req_ids:
            self._states.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            # The second runner gets resumed requests as new ones, with the tokens generated so far.
            tokens = list(new.prefill_token_ids or new.prompt_token_ids)
            blocks = list(new.block_ids[0])
            self._states[new.req_id] = _State(len(new.prompt_token_ids), tokens, blocks, new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            state = self._states[request_id]
            state.computed = cached.num_computed_tokens[i]
            blocks = list(cached.new_block_ids[i][0]) if cached.new_block_ids[i] else []
            state.blocks = blocks if request_id in cached.resumed_req_ids else state.blocks + blocks
            # Output that the scheduler dropped when it put the request back is generated anew.
            del state.tokens[state.n_prompt + cached.num_output_tokens[i] :]

    def _forward(self, batch: list[str], scheduled: dict[str, int]) -> list[list[int]]:
        order = {request_id: i for i, request_id in enumerate(scheduled)}
        counts, starts = [scheduled[r] for r in batch], [self._states[r].computed for r in batch]
        self.board.map_tokens(batch, np.array(counts), np.array(starts))
        sites = list(self.board.sites.values())
        columns = np.concatenate([site.readouts.numpy() for site in self.board.sites.values()], axis=1)
        weights = [column.tobytes() for column in columns]
        buffers = self.board.buffers
        rows, chains, scores = buffers.rows.tolist(), buffers.chains.tolist(), buffers.scores.numpy()
        sampled: list[list[int]] = [[] for _ in batch]
        offsets = np.cumsum(counts) - counts
        # In the order of scheduling, whatever that of the batch: a request may use blocks that another fills in the
        # same step, as attention may.
        for i in sorted(range(len(batch)), key=lambda i: order[batch[i]]):
            request_id, start, count, token = batch[i], starts[i], counts[i], int(offsets[i])
            state = self._states[request_id]
            stream = 0
            for position in range(start, start + count):
                change = b"".join(site.edits[rows[token]].numpy().tobytes() for site in sites)
                change += self._chain(chains[token], buffers.gains[token], weights)
                ask = self._asks[request_id]
                wanted = ask.change(position, ask.reference[1].tolist())
                assert change == wanted, f"{request_id} ran under another plan at {position}"
                before = self._cache[self._place(state, position - 1)] if position else 0
                stream = enter(before, state.tokens[position])
                scores[token] = [read(stream, w) for w in weights]
                stream = leave(stream, change)
                self._cache[self._place(state, position)] = stream
                token += 1
            done = start + count == len(state.tokens)
            sampled[i] = [sample(stream)] if done else []
            state.tokens.extend(sampled[i])
        self.forwarded.append({r: range(s, s + c) for r, s, c in zip(batch, starts, counts, strict=True)})
        return sampled

    def _chain(self, chain: int, gains: torch.Tensor, weights: list[bytes]) -> bytes:
        """The steps of a chain that act, as the banks hold them."""
        shown = b""
        for k in torch.nonzero(gains).flatten().tolist():
            banks = [site.bank for site in self.board.sites.values()]
            numbers = [bank.numbers[chain, k].tolist() for bank in banks]
            for bank, found in zip(banks, numbers, strict=True):
                rows = bank.writers[chain, k].numpy(), bank.readers[chain, k].numpy()
                shown += step_bytes(*rows, found[:6], found[6] > 0)
            columns, (sign, level) = {int(bank.columns[chain, k]) for bank in banks}, numbers[0][7:]
            if sign:
                (column,) = columns
                shown += gate_bytes(weights[column], sign > 0, sign * level)
        return shown

    @staticmethod
    def _place(state: _State, position: int) -> tuple[int, int]:
        return state.blocks[position // BLOCK], position % BLOCK


def save_config(folder: Path) -> Path:
    """The configuration of a tiny Llama: all that a scheduler asks of a model."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"vocab_size": 512, "max_position_embeddings": 512}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **shape, **sizes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@cache
def _common_config(model: Path) -> Any:
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig

    return VllmConfig(
        model_config=ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="float32", max_model_len=MAX_LEN),
        scheduler_config=SchedulerConfig(max_model_len=MAX_LEN, is_encoder_decoder=False),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
    )


def build_scheduler(model: Path, layout: EngineLayout, mode: Mode, blocks: int, **limits: Any) -> Any:
    """`make_scheduler` called as vLLM's engine core calls it. `blocks` counts those that requests can have."""
    from vllm.config import SchedulerConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from pilothouse.engine.scheduler import make_scheduler

    config = copy(_common_config(model))
    config.additional_config = {LAYOUT_KEY: layout.to_dict()}
    # vLLM turns running ahead off for the CPU; here nothing is computed, and what runs on a GPU is wanted.
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "async_scheduling": mode != "sync", **limits}
    config.scheduler_config = SchedulerConfig(max_model_len=MAX_LEN, is_encoder_decoder=False, **settings)
    config.cache_config = copy(config.cache_config)
    # One block stands for "none".
    config.cache_config.num_gpu_blocks = blocks + 1
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    scheduler = make_scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["l"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
    )
    scheduler.use_v2_model_runner = mode == "async v2"
    return scheduler


class FakeEngine:
    """vLLM's engine core around a steering scheduler and a fake worker, and the client's books of every request."""

    def __init__(
        self,
        model: Path,
        mode: Mode,
        layout: EngineLayout | None = None,
        blocks: int = 64,
        seed: int = 0,
        **limits: Any,
    ) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

        init_none_hash(sha256)
        self.layout = layout or EngineLayout(rows=3, rows_per_plan=3, chains=2, chain_steps=2, readouts=3)
        self.scheduler = build_scheduler(model, self.layout, mode, blocks, **limits)
        self.asks: dict[str, Ask] = {}
        self.tracks: dict[str, ChoiceTrack] = {}
        self.ended: dict[str, str] = {}
        self.seen: Counter[str] = Counter()
        self.steps = 0
        self.cost = StepCost()
        self.worker = FakeWorker(self.layout, self.asks, seed)
        # So small that content which nobody uses is forgotten and sent again.
        self.courier = Courier(3 * DIRECTION_BYTES)
        self._hasher = get_request_block_hasher(BLOCK, sha256)
        self._depth = 1 if mode == "sync" else 2
        self._queue: deque[tuple[Any, Any]] = deque()

    def submit(self, ask: Ask, lost: bool = False) -> None:
        """Hand a request to the scheduler as the client would; `lost`: the content of its directions is not there."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(max_tokens=ask.max_tokens, temperature=0.0, ignore_eos=True)
        params.stop_token_ids = [] if ask.stop is None else [ask.stop]
        if not ask.plan.empty:
            wire, _ = resolve(ask.plan, len(ask.prompt), self.layout)
            wire = msgspec.structs.replace(wire, gather=ask.gather)
            params.extra_args = {PLAN_KEY: plan_encoder.encode(wire)}
            parcel = self._parcel(ask)
            if parcel is not None and not lost:
                params.extra_args[DIRECTIONS_KEY] = directions_encoder.encode(parcel)
        self.asks[ask.request_id] = ask
        self.tracks[ask.request_id] = ChoiceTrack(len(ask.prompt), len(ask.plan.readouts))
        self.ended.pop(ask.request_id, None)
        self.scheduler.add_request(Request(ask.request_id, list(ask.prompt), params, None, block_hasher=self._hasher))

    def abort(self, request_ids: Iterable[str]) -> None:
        """The clients of these went away."""
        from vllm.v1.request import RequestStatus

        for request_id in request_ids:
            if request_id not in self.ended:
                self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
                self._end(request_id, "abort")

    def step(self, abort: Iterable[str] = ()) -> None:
        """One turn of vLLM's `step_with_batch_queue` (or `step`); `abort`: requests given up while the step runs."""
        self.steps += 1
        executed = False
        if self.scheduler.has_requests():
            output = self.scheduler.schedule()
            self._note(output)
            self._queue.append((output, self.worker.execute(output)))
            executed = bool(output.num_scheduled_tokens)
        self.abort(abort)
        if not self._queue or (len(self._queue) < self._depth and (executed or self.scheduler.has_requests())):
            return
        output, result = self._queue.popleft()
        for per_client in self.scheduler.update_from_output(output, result).values():
            for one in per_client.outputs:
                self._receive(one)

    def drain(self, limit: int = 2000) -> None:
        """Step until nothing is left to do, as vLLM would; fails when something waits for ever."""
        for _ in range(limit):
            if not self._queue and not self.scheduler.has_requests():
                return
            self.step()
        raise AssertionError(f"still waiting: {sorted(set(self.asks) - set(self.ended))}")

    def running(self, request_id: str) -> bool:
        return any(r.request_id == request_id for r in self.scheduler.running)

    def preempted(self) -> list[str]:
        """Requests that were put back and wait to go on."""
        from vllm.v1.request import RequestStatus

        return [r.request_id for r in self.scheduler.requests.values() if r.status == RequestStatus.PREEMPTED]

    def _parcel(self, ask: Ask) -> WireDirections | None:
        directions = self._directions(ask)
        self.courier.hold(directions)
        parcel = self.courier.parcel(directions)
        if parcel is not None:
            self.courier.arrived(parcel)
        return parcel

    @staticmethod
    def _directions(ask: Ask) -> list[Direction]:
        return [e.direction for e in ask.plan.edits] + [r.direction for r in ask.plan.readouts]

    def _receive(self, output: Any) -> None:
        request_id = output.request_id
        assert request_id not in self.ended, f"output for {request_id}, which is over: {self.ended[request_id]}"
        track = self.tracks[request_id]
        for reader, reading in take_readings(output):
            assert reader not in self.ended, f"a reading for {reader}, which is over: {self.ended[reader]}"
            self.seen["readings"] += 1
            self.cost = self.cost.plus(reading.cost)
            self._check_edited(reader, reading)
            self.tracks[reader].add(reading)
        track.token_ids.extend(output.new_token_ids)
        if output.finish_reason is not None:
            self._end(request_id, str(output.finish_reason))

    def _check_edited(self, request_id: str, reading: Reading) -> None:
        ask = self.asks[request_id]
        for start, count, edited in reading.runs:
            wanted = sum(ask.edited(p) for p in range(start, start + count))
            assert edited == wanted, f"{request_id}: {edited} positions edited from {start}, should be {wanted}"

    def _end(self, request_id: str, how: str) -> None:
        ask = self.asks[request_id]
        self.ended[request_id] = how
        self.seen["late ends"] += sum(request_id in output.num_scheduled_tokens for output, _ in self._queue)
        self.courier.drop(self._directions(ask))
        if how == "error":
            self.courier.lost(d.digest for d in self._directions(ask))

    def _note(self, output: Any) -> None:
        """Count what the run came across, so that a test can tell that it did."""
        self.seen["preempted"] += len(output.preempted_req_ids or ())
        self.seen["cached"] += sum(new.num_computed_tokens > 0 for new in output.scheduled_new_reqs)
        requests = self.scheduler.requests.values()
        self.seen["stale"] += sum(r.num_stale_output_tokens > 0 for r in requests)
        self.seen["refused"] += len(self.scheduler._refused)
        cut = [r for r in output.num_scheduled_tokens if self.scheduler.requests[r].is_prefill_chunk]
        self.seen["cut prompts"] += len(cut)
