"""The scheduler with slots: a request runs only when the rows of its plan and its probes have places.

Seam: `Scheduler` and `AsyncScheduler` of vllm/v1/core/sched (add_request, _handle_blocked_waiting_request, schedule,
_free_request, update_from_output, _update_request_with_output, _get_local_prefix_cache_hit, reset_prefix_cache), held
by a contract test. Given to vLLM by name (`--scheduler-cls`) as a factory, since only after configuration is it known
which of the two is wanted.
"""

import logging
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from pilothouse.core.messages import (
    DIRECTIONS_KEY,
    ORDERS_ATTRIBUTE,
    READINGS_ATTRIBUTE,
    ChainLoad,
    ReadoutLoad,
    RequestOrders,
    RowLoad,
    StepOrders,
    WirePlan,
    directions_decoder,
    orders_encoder,
)
from pilothouse.core.plans import END
from pilothouse.engine.directions import DirectionStore
from pilothouse.engine.holdings import Held, Lack, Refusal
from pilothouse.engine.listener import Listener, LiveByClient
from pilothouse.engine.prefix_cache import install_edit_keys, plan_of
from pilothouse.engine.runner import layout_of
from pilothouse.engine.score_store import BlockCollector, ScoreStore
from pilothouse.engine.slots import SlotTable

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)

PATIENCE = 200
"""Steps after which a request that waits for places goes before all that would prolong its wait."""


class SteeringScheduler(_Base):
    """Mixed in front of vLLM's scheduler class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        install_edit_keys()
        layout = layout_of(self.vllm_config)
        self.pilothouse_rows = SlotTable(layout.rows)
        self.pilothouse_chains = SlotTable(layout.n_chains - 1)
        self.pilothouse_columns = SlotTable(layout.readouts)
        self.pilothouse_directions = DirectionStore()
        self.pilothouse_faults = 0
        self._stopping = 0
        """Requests here that a probe may end."""
        self._held: dict[str, Held] = {}
        self._pinned: dict[str, set[bytes]] = {}
        self._refused: dict[str, Refusal] = {}
        self._reserved: list[str] = []
        self._retired: list[str] = []
        self._listener = Listener(self._held, self.requests)
        self._scores = ScoreStore(self.hash_block_size)

    def add_request(self, request: Any) -> None:
        self._listener.forget(request.request_id)
        plan = plan_of(request)
        if plan is not None:
            self._take_directions(request)
            if self.pilothouse_directions.missing(plan.named):
                # Reported as a failed request at the next step; an exception here would end every request.
                self.grammar_compile_error_reqs.add(request.request_id)
            else:
                self.pilothouse_directions.pin(plan.named)
                self._pinned[request.request_id] = plan.named
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._reserved = []
        output = super().schedule(*args, **kwargs)
        started = [r for r in self._reserved if r in output.num_scheduled_tokens]
        for request_id in set(self._reserved).difference(started):
            self._let_go(self._held.pop(request_id))
        if orders := self._orders(started):
            setattr(output, ORDERS_ATTRIBUTE, orders_encoder.encode(orders))
        for new in output.scheduled_new_reqs:
            self._note_cached(new.req_id, new.num_computed_tokens)
        again = output.scheduled_cached_reqs
        if again.resumed_req_ids:
            for request_id, n_computed in zip(again.req_ids, again.num_computed_tokens, strict=True):
                if request_id in again.resumed_req_ids:
                    self._note_cached(request_id, n_computed)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        readings = getattr(model_runner_output, READINGS_ATTRIBUTE, None)
        live: LiveByClient = {}
        if isinstance(readings, tuple):
            live = self._listener.hear_again(readings)
        elif readings is not None:
            self._listener.hear(readings, _rejected(scheduler_output, model_runner_output))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._listener.pass_on(outputs, live)
        return outputs

    def _update_until_stop(
        self, request: Any, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        """vLLM's `_update_request_with_output`, in whose place it is while a request is here that a probe may end."""
        held = self._held.get(request.request_id)
        if held is not None and held.stop_at != END:
            # Drafts may have been accepted past the token that is to be the last one.
            new_token_ids = new_token_ids[: max(held.stop_at + 2 - request.num_tokens, 1)]
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        if not stopped and new_token_ids and held is not None and request.num_tokens >= held.stop_at + 2:
            request.status, request.stop_reason = RequestStatus.FINISHED_STOPPED, held.stop_reason
            stopped = True
        return new_token_ids, stopped

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        if not super()._handle_blocked_waiting_request(request):
            return False
        plan = plan_of(request)
        if plan is None or request.request_id in self._held:
            return True
        if request.request_id in self.grammar_compile_error_reqs:
            return False
        lack = self._lack(plan)
        if any(lack) or self._must_give_way(request.request_id, plan):
            since = self._refused[request.request_id].step if request.request_id in self._refused else self.current_step
            self._refused[request.request_id] = Refusal(since, lack)
            return False
        self._refused.pop(request.request_id, None)
        self._held[request.request_id] = self._hold(plan)
        self._reserved.append(request.request_id)
        return True

    def _lack(self, plan: WirePlan) -> Lack:
        """Of which tables `plan` could not have its places now."""
        columns = self.pilothouse_columns.places(plan.readouts)
        # Where a gate's column is not given out yet, no loaded chain can look at it.
        chain_keys = _chain_keys(plan, columns) if columns is not None else [b"new"] * bool(plan.chain)
        return Lack(
            rows=not self.pilothouse_rows.can_acquire(plan.row_keys),
            chain=not self.pilothouse_chains.can_acquire(chain_keys),
            columns=not self.pilothouse_columns.can_acquire(plan.readouts),
        )

    def _hold(self, plan: WirePlan) -> Held:
        """Places for `plan` in all tables; call only when it lacks none."""
        rows = self.pilothouse_rows.acquire(plan.row_keys)
        columns = self.pilothouse_columns.acquire(plan.readouts)
        chain_keys = _chain_keys(plan, columns)
        chains = self.pilothouse_chains.acquire(chain_keys)
        collector = BlockCollector(self._scores, plan.readouts) if _wants_prompt_scores(plan) else None
        if plan.stops:
            self._stopping += 1
            self.__dict__["_update_request_with_output"] = self._update_until_stop
        return Held(
            plan,
            # Row 0 of the banks is nobody's.
            rows=tuple(1 + row for row in rows),
            chain_key=chain_keys[0] if chains else b"",
            chain=1 + chains[0] if chains else 0,
            columns=tuple(columns),
            collector=collector,
        )

    def _must_give_way(self, request_id: str, plan: WirePlan) -> bool:
        """Whether a request that was refused long ago lacks what this one would join or take.

        Without this a rare plan could wait for ever behind a popular one, whose requests hand its places on without a
        pause.
        """
        first = next(iter(self._refused), request_id)
        if first == request_id:
            return False
        refusal = self._refused[first]
        if self.current_step - refusal.step < PATIENCE:
            return False
        wants = Lack(bool(plan.rows), bool(plan.chain), bool(plan.readouts))
        return any(lacks and wanted for lacks, wanted in zip(refusal.lack, wants, strict=True))

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._refused.pop(request.request_id, None)
        if digests := self._pinned.pop(request.request_id, None):
            self.pilothouse_directions.unpin(digests)
        held = self._held.pop(request.request_id, None)
        if held is not None:
            self._let_go(held)
            self._retired.append(request.request_id)
            self._listener.part_from(request, held)
        freed = super()._free_request(request, *args, **kwargs)
        if not self.requests:
            self._audit()
        return freed

    def _audit(self) -> None:
        """Nobody is here: nothing may be held. What is wrong is reported and made good, and serving goes on."""
        left = {name: len(getattr(self, name)) for name in ("_held", "_pinned", "_refused")}
        faults = [f"{count} in {name}" for name, count in left.items() if count]
        for table in (self.pilothouse_rows, self.pilothouse_chains, self.pilothouse_columns):
            try:
                table.check_idle()
            except AssertionError as error:
                faults.append(str(error))
        if faults:
            self.pilothouse_faults += 1
            logger.error("Slots are not as they should be when no request is left: %s", "; ".join(faults))
            self.pilothouse_rows = SlotTable(self.pilothouse_rows.capacity)
            self.pilothouse_chains = SlotTable(self.pilothouse_chains.capacity)
            self.pilothouse_columns = SlotTable(self.pilothouse_columns.capacity)
            for name in left:
                getattr(self, name).clear()
            self._stopping = 0
            self.__dict__.pop("_update_request_with_output", None)

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """vLLM's lookup; for a request that wants prompt scores, only as far as there are scores too."""
        plan = plan_of(request)
        manager = self.kv_cache_manager
        if plan is not None and plan.latched:
            # What its gates saw at positions that are not forwarded would be lost.
            return manager.empty_kv_cache_blocks, 0, 0, False
        if plan is None or not _wants_prompt_scores(plan):
            return super()._get_local_prefix_cache_hit(request)
        covered = self._scores.covered(request.block_hashes, plan.readouts) if request.block_hashes else 0
        if not covered or not manager.prefix_cache_lookup_enabled(request):
            return manager.empty_kv_cache_blocks, 0, 0, False
        longest = min(covered * self.hash_block_size, request.num_tokens - 1)
        blocks, n_computed, _ = manager.coordinator.find_longest_cache_hit(request.block_hashes, longest)
        return manager.create_kv_cache_blocks(blocks), n_computed, 0, False

    def _note_cached(self, request_id: str, n_computed: int) -> None:
        """A request that starts behind cached positions says so with its next output, and brings their kept scores."""
        held = self._held.get(request_id)
        if held is None or not n_computed:
            return
        buffer = self._listener.buffer_of(request_id, held)
        buffer.cached = max(buffer.cached, n_computed)
        if held.collector is not None:
            hashes = self.requests[request_id].block_hashes[: -(-n_computed // self.hash_block_size)]
            # Looked up in this very step, so they are there; were they not, the client would report the gap.
            if self._scores.covered(hashes, held.plan.readouts) == len(hashes):
                rows = self._scores.take(hashes, held.plan.readouts)[:n_computed]
                held.look(0, rows)
                buffer.kept.append(rows)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """vLLM's, and the scores beside the cache: it is called when weights change."""
        self._scores.clear()
        reset: bool = super().reset_prefix_cache(*args, **kwargs)
        return reset

    def _take_directions(self, request: Any) -> None:
        raw = request.sampling_params.extra_args.get(DIRECTIONS_KEY)
        if raw is not None:
            self.pilothouse_directions.take(request.client_index, directions_decoder.decode(raw))

    def _let_go(self, held: Held) -> None:
        self.pilothouse_rows.release(held.plan.row_keys)
        if held.chain_key:
            self.pilothouse_chains.release([held.chain_key])
        self.pilothouse_columns.release(held.plan.readouts)
        if held.plan.stops:
            self._stopping -= 1
            if not self._stopping:
                del self.__dict__["_update_request_with_output"]

    def _orders(self, started: list[str]) -> StepOrders | None:
        """What the workers must do before this step, given the requests that start in it."""
        store = self.pilothouse_directions
        forget = store.dropped()
        if not (started or self._retired or forget):
            return None
        rows: list[RowLoad] = []
        chains: list[ChainLoad] = []
        readouts: list[ReadoutLoad] = []
        requests: dict[str, RequestOrders] = {}
        needed: set[bytes] = set()
        for request_id in started:
            held = self._held[request_id]
            plan = held.plan
            for place, key, row in zip(held.rows, plan.row_keys, plan.rows, strict=True):
                if self.pilothouse_rows.mark_loaded(key):
                    edits = tuple(plan.edits[i] for i in row)
                    rows.append(RowLoad(place, edits))
                    needed.update(edit.direction for edit in edits)
            if held.chain_key and self.pilothouse_chains.mark_loaded(held.chain_key):
                columns = tuple(0 if step.gate is None else held.columns[step.gate.readout] for step in plan.steps)
                chains.append(ChainLoad(held.chain, plan.steps, columns))
                needed.update(plan.chained)
            for column, digest in zip(held.columns, plan.readouts, strict=True):
                if self.pilothouse_columns.mark_loaded(digest):
                    readouts.append(ReadoutLoad(column, digest))
                    needed.add(digest)
            requests[request_id] = RequestOrders(
                held.rows, plan.spans, held.columns, plan.read_from, held.chain, plan.steps
            )
        retired, self._retired = tuple(self._retired), []
        return StepOrders(retired, forget, store.unsent(needed), tuple(rows), tuple(chains), tuple(readouts), requests)


def _rejected(scheduler_output: Any, model_runner_output: Any) -> dict[str, int]:
    """How many of the draft tokens that a step verified were rejected, by request."""
    rejected: dict[str, int] = {}
    if not model_runner_output.sampled_token_ids:
        return rejected
    for request_id, drafts in scheduler_output.scheduled_spec_decode_tokens.items():
        sampled = model_runner_output.sampled_token_ids[model_runner_output.req_id_to_index[request_id]]
        # Where nothing was sampled, vLLM takes all as computed.
        rejected[request_id] = len(drafts) + 1 - len(sampled) if sampled else 0
    return rejected


def _wants_prompt_scores(plan: WirePlan) -> bool:
    return bool(plan.readouts) and plan.read_from == 0


def _chain_keys(plan: WirePlan, columns: list[int]) -> list[bytes]:
    """What a loaded chain is known by: its digest, and the columns that its gates look at, which change owners."""
    if not plan.chain:
        return []
    looked_at = [columns[step.gate.readout] for step in plan.steps if step.gate is not None and not step.gate.latched]
    return [plan.chain + bytes(f"{looked_at}", "ascii")]


def make_scheduler(**kwargs: Any) -> Any:
    """vLLM's scheduler for this configuration, with slots."""
    asynchronous = kwargs["vllm_config"].scheduler_config.async_scheduling
    base = AsyncScheduler if asynchronous else Scheduler
    return type(f"Steering{base.__name__}", (SteeringScheduler, base), {})(**kwargs)
