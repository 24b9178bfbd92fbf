"""What must be true of a `FakeEngine` once a request, or all of them, are over."""

from __future__ import annotations

import numpy as np

from engine_support.fake_worker import MAX_LEN, FakeEngine


def check_result(engine: FakeEngine, request_id: str, overran: bool = False) -> None:
    """What came back of a request that ran to its end is exactly its reference.

    overran: the last token may have been forwarded before it was known to be the last, and its step delivered.
    """
    ask, track = engine.asks[request_id], engine.tracks[request_id]
    generated, scores = ask.reference
    assert track.token_ids == generated
    if ask.plan.empty:
        assert not track.count_forwarded(0, MAX_LEN), "readings for a request without a plan"
        return
    stop = len(ask.prompt) + len(generated) - 1
    assert stop == len(scores)
    np.testing.assert_array_equal(track.scores(ask.read_from, stop), scores[ask.read_from :])
    forwarded = {p for step in engine.worker.forwarded for p in step.get(request_id, ()) if p < stop}
    assert forwarded == {p for p in range(stop) if track.count_forwarded(p, p + 1)}
    # Not the whole prompt even behind the first of them: what is put back amid its prompt may go on behind blocks that
    # others have cached in the meantime.
    assert forwarded >= set(range(len(ask.prompt) - 1, stop))
    if not overran:
        assert track.count_forwarded(stop, MAX_LEN) == 0, "the last token was reported as forwarded"
        assert np.isnan(track.scores(stop, MAX_LEN)).all()


def check_idle(engine: FakeEngine) -> None:
    """Nothing is kept of requests that are over."""
    scheduler = engine.scheduler
    for table in (scheduler.pilothouse_rows, scheduler.pilothouse_chains, scheduler.pilothouse_columns):
        table.check_integrity()
        assert table.held == 0
    for name in ("_held", "_pinned", "_refused", "_reserved", "_retired"):
        assert not getattr(scheduler, name), f"{name} keeps {getattr(scheduler, name)}"
    assert not scheduler._listener._buffers, "readings are kept of requests that are over"
    assert not scheduler._stopping
    assert not scheduler.pilothouse_directions._pins
    # The last step may have been of requests that were given up: then its cost waits for the next output.
    told = engine.cost.plus(scheduler._listener._cost)
    assert told.steps == engine.worker.with_plans
    assert (told.prepare > 0.0) == (told.read > 0.0) == (told.steps > 0)
    assert len(engine.worker.board.spans) == 0
    assert not scheduler.pilothouse_directions.missing(engine.worker.board.directions), "content is kept for ever"
