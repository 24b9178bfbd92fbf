"""Directions on their way: whatever is evicted, forgotten, returned or lost, a request finds what it names."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pilothouse.core.directions import Direction
from pilothouse.core.messages import WireDirections
from pilothouse.engine.courier import Courier, Couriers
from pilothouse.engine.directions import DirectionStore

DIRECTIONS = [Direction({0: np.full(4, i, dtype=np.float32)}) for i in range(5)]
SIZE = 16


class System:
    """One client, several engine cores each with a worker, with only what concerns directions."""

    def __init__(self, capacity: int, engines: int = 1) -> None:
        self.couriers = Couriers(capacity * SIZE)
        self.stores = [DirectionStore() for _ in range(engines)]
        self.workers: list[set[bytes]] = [set() for _ in range(engines)]
        self.live: list[tuple[list[Direction], int]] = []

    def start(self, named: list[Direction], fate: str, engine: int = 0) -> bool:
        """A request goes out to an engine; True when it could run it."""
        courier, store = self.couriers.to(bytes([engine])), self.stores[engine]
        self.couriers.hold(named)
        self.live.append((named, engine))
        parcel = courier.parcel(named)
        if parcel is not None and fate == "not sent":
            courier.returned(parcel)
            self.finish(-1, reached=False)
            return True
        if parcel is not None:
            courier.arrived(parcel)
            if fate != "dropped":
                store.take(0, parcel)
        digests = {d.digest for d in named}
        if fate == "dropped" or store.missing(digests):
            self.couriers.lost(digests)
            self.finish(-1, reached=False)
            return fate == "dropped"
        store.pin(digests)
        self.step(digests, engine)
        return True

    def step(self, needed: set[bytes], engine: int) -> None:
        store, worker = self.stores[engine], self.workers[engine]
        forget = store.dropped()
        new = store.unsent(needed)
        worker.difference_update(forget)
        worker.update(new)
        assert needed <= worker

    def finish(self, index: int, reached: bool = True) -> None:
        named, engine = self.live.pop(index)
        self.couriers.drop(named)
        if reached:
            self.stores[engine].unpin({d.digest for d in named})


moves = st.lists(
    st.one_of(
        st.tuples(
            st.just("start"),
            st.lists(st.sampled_from(DIRECTIONS), min_size=1, max_size=2, unique=True),
            st.sampled_from(["sent"] * 4 + ["not sent", "dropped"]),
            st.integers(0, 1),
        ),
        st.tuples(st.just("finish"), st.just([]), st.just(""), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), moves)
def test_a_request_fails_only_for_content_that_was_just_lost(
    capacity: int, engines: int, sequence: list[tuple[str, list[Direction], str, int]]
) -> None:
    system, lossy = System(capacity, engines), False
    for kind, named, fate, number in sequence:
        engine = number % engines
        if kind == "finish":
            if system.live:
                system.finish(0)
            continue
        ran = system.start(named, fate, engine)
        assert ran or lossy, "content was missing though nothing was ever lost"
        if not ran:
            assert system.start(named, "sent", engine), "what was lost was not sent again"
        lossy = lossy or fate == "dropped"
    while system.live:
        system.finish(0)
    if not lossy:
        # With nobody left, one more request makes room: no engine keeps more than the client's budget.
        for engine, store in enumerate(system.stores):
            assert system.start([Direction({0: np.full(4, 99, dtype=np.float32)})], "sent", engine)
            assert len(store) <= capacity


def test_an_engine_is_sent_what_it_lacks_whatever_others_have() -> None:
    couriers = Couriers(1 << 20)
    for engine in (b"0", b"1"):
        parcel = couriers.to(engine).parcel(DIRECTIONS[:2])
        assert parcel is not None
        couriers.to(engine).arrived(parcel)
        assert couriers.to(engine).parcel(DIRECTIONS[:2]) is None
    couriers.lost([DIRECTIONS[0].digest])
    assert all(couriers.to(engine).parcel(DIRECTIONS[:2]) is not None for engine in (b"0", b"1"))


def test_content_is_sent_once() -> None:
    courier = Courier(1 << 20)
    parcel = courier.parcel(DIRECTIONS[:2])
    assert parcel is not None
    assert set(parcel.content) == {d.digest for d in DIRECTIONS[:2]}
    courier.arrived(parcel)
    assert courier.parcel(DIRECTIONS[:2]) is None


def test_until_a_parcel_is_on_its_way_others_carry_the_same_content() -> None:
    courier = Courier(1 << 20)
    assert courier.parcel(DIRECTIONS[:1]) is not None
    assert courier.parcel(DIRECTIONS[:1]) is not None


def test_a_direction_that_a_live_request_names_is_not_forgotten() -> None:
    courier = Courier(SIZE)
    courier.hold(DIRECTIONS[:1])
    for direction in DIRECTIONS[:3]:
        parcel = courier.parcel([direction])
        assert parcel is not None
        assert DIRECTIONS[0].digest not in parcel.forget
        courier.arrived(parcel)


def test_a_client_cannot_make_another_clients_direction_disappear() -> None:
    store, one = DirectionStore(), DIRECTIONS[0]
    for client in (0, 1):
        store.take(client, WireDirections({one.digest: one.payload}))
    store.take(0, WireDirections(forget=(one.digest,)))
    assert not store.missing([one.digest])
    store.take(1, WireDirections(forget=(one.digest,)))
    assert store.missing([one.digest])
