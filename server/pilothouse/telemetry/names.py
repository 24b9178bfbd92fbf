"""From names to label values: those that the server's operator configured, and fixed words; nothing else."""

from collections.abc import Iterable

from pilothouse.core.records import NO_TOKEN_IDS, RequestOutcome

ADHOC = "adhoc"
"""Vectors, features and probes that nobody configured."""
NONE = "none"
"""The steering of requests that were not steered."""
SEVERAL = "several"
"""Combinations of vectors beyond the first `MAX_JOINED`."""
OTHER = "other"
"""Models and routes that are not the server's own."""
UNKNOWN = "unknown"
"""A reason without a name."""

MAX_JOINED = 100
"""Combinations of vectors that get a value of their own. Of 50 vectors there are 20,825 of up to three."""

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", OTHER})
REASONS = frozenset(
    {
        "aborted",
        "engine_gap",
        "error",
        "no_generated_token",
        NO_TOKEN_IDS,
        "not_finite",
        "one_generated_token",
        UNKNOWN,
    }
)

_RESERVED = frozenset({ADHOC, NONE, OTHER, SEVERAL})
FIXED_WORDS = ROUTES | REASONS | _RESERVED


class Names:
    """What is or once was configured: a request that began before a name was deleted still counts under it.

    probes: their names.
    """

    def __init__(self) -> None:
        self._models: set[str] = set()
        self.probes: frozenset[str] = frozenset()
        self._vectors: set[str] = set()
        self._joined: set[str] = set()

    def add(self, models: Iterable[str] = (), probes: Iterable[str] = (), vectors: Iterable[str] = ()) -> None:
        """Names that may be label values from now on. One that is a word with a meaning of its own may not."""
        # New sets rather than changed ones: others read them meanwhile.
        self._models = self._models | set(models) - _RESERVED
        self.probes = self.probes | set(probes) - _RESERVED
        self._vectors = self._vectors | set(vectors) - _RESERVED

    def model(self, name: str) -> str:
        return name if name in self._models else OTHER

    def probe(self, name: str) -> str:
        return name if name in self.probes else ADHOC

    def vector(self, name: str) -> str:
        """Of a vector, or of an SAE whose features steer."""
        return name if name in self._vectors else ADHOC

    def steering(self, outcome: RequestOutcome) -> str:
        """`none`, a name, names joined by `+`, `several` or `adhoc`."""
        label, names = outcome.steering, outcome.steered_by
        if label == NONE and not names:
            return NONE
        if not names or label != "+".join(sorted(names)) or not self._vectors.issuperset(names):
            return ADHOC
        if len(names) == 1 or label in self._joined:
            return label
        if len(self._joined) >= MAX_JOINED:
            return SEVERAL
        self._joined.add(label)
        return label


def route(name: str) -> str:
    """The value of the label `route`."""
    return name if name in ROUTES else OTHER


def reason(name: str | None) -> str:
    """The value of the label `reason` of what was not scored."""
    return name if name in REASONS else UNKNOWN
