"""The scheduler's end of the readings: it hears what each step ran, and puts it onto the outputs of the requests."""

from collections.abc import Mapping, Sequence
from typing import Any

from pilothouse.core.messages import LIVE_KEY, READING_KEY, StepCost, StepReadings, StepRepeat, live_encoder
from pilothouse.engine.holdings import Held
from pilothouse.engine.runs import GATHERED, Buffer, Live, Part, Run, Stretches

LiveByClient = Mapping[int, Sequence[Live]]


class Listener:
    """held: by request, what it holds; requests: vLLM's own, by their ids; both as they are at any time."""

    def __init__(self, held: Mapping[str, Held], requests: Mapping[str, Any]) -> None:
        self._held = held
        self._requests = requests
        self._cost = StepCost()
        self._run: Run | None = None
        self._buffers: dict[str, Buffer] = {}
        self._due = False
        """Whether a buffer may have to go, though its request has not ended."""

    def forget(self, request_id: str) -> None:
        """A request of this name begins: what is left is of an earlier one, whose last step gave no output."""
        self._buffers.pop(request_id, None)

    def part_from(self, request: Any, held: Held) -> None:
        """Nothing that is read from now on is of this request."""
        if (buffer := self._buffers.get(request.request_id)) is not None:
            # Accepted drafts may lie behind the end, and so may steps under way; the last token is never fed back.
            buffer.end = request.num_tokens - 1
        if self._run is not None:
            self._run.live = None
            self._run.watched = [(k, other) for k, other in self._run.watched if other is not held]

    def pass_on(self, outputs: Any, live: LiveByClient) -> None:
        """Put onto a step's outputs what is to go with them; live: as `hear_again` gave it for the step."""
        if live:
            self._tell(outputs, live)
        if self._buffers:
            self._attach(outputs)

    def buffer_of(self, request_id: str, held: Held) -> Buffer:
        """What has not been sent of a request; it goes when the request ends, or with its next output."""
        buffer = self._buffers.get(request_id)
        if buffer is None:
            buffer = self._buffers[request_id] = Buffer(held.columns, held.plan.gather)
        return buffer

    def hear(self, readings: StepReadings, rejected: Mapping[str, int]) -> None:
        """Take in what a step ran; rejected: of how many draft tokens, the last ones of each request, it did so in
        vain."""
        self._cost = self._cost.plus(readings.cost)
        run = self._begin(Stretches(readings, rejected), readings.advanced, gathering=False)
        run.scores.append(readings.scores.tobytes())
        self._look(run)
        self._due = True

    def hear_again(self, repeat: StepRepeat) -> LiveByClient:
        """Take in a step like the one before; by client, who is to be told of it now."""
        batch, advanced, scores, prepare, read = repeat
        self._cost = self._cost.plus(StepCost(1, prepare, read))
        run = self._run
        if run is None or run.of.batch != batch:
            # What was read cannot be told apart: the client will report the gap.
            return {}
        if run.next != advanced or len(run.scores) >= run.room:
            run = self._begin(run.of, advanced, gathering=True)
        run.scores.append(scores)
        self._look(run)
        self._due |= len(run.scores) >= run.room
        if run.live is None:
            run.live = self._live(run.of)
        return run.live

    def _begin(self, of: Stretches, advanced: int, gathering: bool) -> Run:
        """The steps from now on are a run of their own; gathering: they are for those alone whose readings may wait."""
        run = self._run = Run(of, advanced)
        for k, request_id in enumerate(of.request_ids):
            held = self._held.get(request_id)
            if held is None:
                continue
            if (held.plan.stops or held.collector is not None) and of.scored[k]:
                run.watched.append((k, held))
            if held.plan.gather or not gathering:
                buffer = self.buffer_of(request_id, held)
                run.room = min(run.room, max(GATHERED - buffer.n_steps, 1))
                buffer.parts.append(Part(run, k, end=None if held.plan.gather else 1))
        return run

    def _look(self, run: Run) -> None:
        """See whether what the last step of `run` read ends a sequence, and keep what is kept beside the cache."""
        if not run.watched:
            return
        of, table = run.of, run.newest()
        for k, held in run.watched:
            rows = table[of.rows[k] : of.rows[k] + of.scored[k], held.columns]
            first = of.firsts[k] + run.next - 1
            held.look(first, rows)
            if held.collector is not None:
                held.collector.add(first, rows, self._requests[of.request_ids[k]].block_hashes)

    def _live(self, of: Stretches) -> LiveByClient:
        """By client, those of a step whose readings may not wait, together as far as their readouts are in the same
        columns."""
        alike: dict[tuple[int, tuple[int, ...], bool], list[int]] = {}
        for k, request_id in enumerate(of.request_ids):
            held = self._held.get(request_id)
            if held is not None and not held.plan.gather:
                kind = (self._requests[request_id].client_index, held.columns, bool(of.scored[k]))
                alike.setdefault(kind, []).append(k)
        found: dict[int, list[Live]] = {}
        for (client, columns, _), members in alike.items():
            found.setdefault(client, []).append(Live(of, members, columns))
        return found

    def _tell(self, outputs: Any, live: LiveByClient) -> None:
        """Put onto an output of each client what it is to be told of the step."""
        run = self._run
        if run is None:
            raise RuntimeError("there is no step to tell of")
        for client, groups in live.items():
            told = outputs[client].outputs if client in outputs else ()
            if not told:
                # No request of this client has a new token. What was read goes with the next one of each.
                for group in groups:
                    self._put_off(run, group)
                continue
            messages = []
            for group in groups:
                messages.append(group.told(run, self._cost))
                self._cost = StepCost()
            _put(told[0], LIVE_KEY, live_encoder.encode(messages))

    def _put_off(self, run: Run, group: Live) -> None:
        for k in group.members:
            request_id = run.of.request_ids[k]
            if (held := self._held.get(request_id)) is not None:
                n_steps = len(run.scores)
                self.buffer_of(request_id, held).parts.append(Part(run, k, n_steps - 1, n_steps))
                self._due = True

    def _attach(self, outputs: Any) -> None:
        """Move buffered readings onto the outputs of their requests; forget those of requests that are gone."""
        ended = False
        for per_client in outputs.values():
            for output in per_client.outputs:
                over = output.finish_reason is not None
                ended |= over
                if not (over or self._due):
                    continue
                buffer = self._buffers.get(output.request_id)
                if buffer is None or not (over or buffer.due):
                    continue
                del self._buffers[output.request_id]
                _put(output, READING_KEY, buffer.encode(self._cost))
                self._cost = StepCost()
        if not (ended or self._due):
            return
        for request_id in [r for r in self._buffers if r not in self._requests]:
            del self._buffers[request_id]
        # A request that had no output in this step, though its readings may not wait, is looked at again in the next.
        self._due = any(buffer.due for buffer in self._buffers.values())


def _put(output: Any, key: str, value: bytes) -> None:
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), key: value}
