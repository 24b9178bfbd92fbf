"""One request behind each bucket and counter: the newest that was counted there, by trace and response."""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from prometheus_client import Metric
from prometheus_client.samples import Exemplar

from pilothouse.core.records import RequestOutcome

MAX_CHARACTERS = 128
"""Of the names and values of an exemplar's labels together, by the OpenMetrics specification."""

MAX_EXEMPLARS = 2000
"""That a process keeps; beyond them the oldest goes."""

# A client may choose its response's id. What is not plain is left out: nothing would find half an id.
_PLAIN = re.compile(r"[A-Za-z0-9._:/@+=~-]+")

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels in order."""


class Seen(NamedTuple):
    """An exemplar's labels, the value that was observed, and when, in seconds since 1970."""

    labels: Mapping[str, str]
    value: float
    time: float


def key_of(name: str, labels: Mapping[str, str]) -> Key:
    """Which sample `name` with `labels` is."""
    return name, tuple(sorted(labels.items()))


def exemplar_labels(outcome: RequestOutcome) -> dict[str, str]:
    """`trace_id` and `request_id` of a request, as far as they are known and fit; empty when neither is."""
    found = {} if outcome.trace is None else {"trace_id": outcome.trace.trace_id}
    length = sum(len(name) + len(value) for name, value in found.items())
    request_id = outcome.response_id
    if _PLAIN.fullmatch(request_id) and length + len("request_id") + len(request_id) <= MAX_CHARACTERS:
        found["request_id"] = request_id
    return found


class Exemplars:
    """The newest exemplar of each sample. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: OrderedDict[Key, Seen] = OrderedDict()

    def keep(self, key: Key, seen: Seen) -> None:
        """`seen` is the newest of the sample `key`."""
        with self._lock:
            self._newest[key] = seen
            self._newest.move_to_end(key)
            if len(self._newest) > MAX_EXEMPLARS:
                self._newest.popitem(last=False)

    def all(self) -> dict[Key, Seen]:
        """A copy."""
        with self._lock:
            return dict(self._newest)

    def dump(self) -> list[Any]:
        """For `load`, in JSON."""
        return [[name, labels, seen.labels, seen.value, seen.time] for (name, labels), seen in self.all().items()]


def load(dumped: Iterable[Any]) -> dict[Key, Seen]:
    """What `Exemplars.dump` wrote; ValueError, TypeError or KeyError for anything else."""
    return {key_of(name, dict(labels)): Seen(dict(shown), value, time) for name, labels, shown, value, time in dumped}


def newest(several: Iterable[Mapping[Key, Seen]]) -> dict[Key, Seen]:
    """Of each sample the exemplar that is newest among all."""
    found: dict[Key, Seen] = {}
    for kept in several:
        for key, seen in kept.items():
            if key not in found or found[key].time < seen.time:
                found[key] = seen
    return found


def attach(family: Metric, kept: Mapping[Key, Seen]) -> None:
    """Put exemplars on the family's samples."""
    for number, sample in enumerate(family.samples):
        if seen := kept.get(key_of(sample.name, sample.labels)):
            family.samples[number] = sample._replace(exemplar=Exemplar(dict(seen.labels), seen.value, seen.time))
