"""One finished request, several takers."""

import logging
from collections import Counter

from pilothouse.core.records import OutcomeSink, RequestOutcome

logger = logging.getLogger(__name__)


class Sinks:
    """Passes every outcome to each sink. One that fails is reported once and disturbs nobody; it is tried again.

    errors: outcomes that a sink failed to take, by the name of its class, and what was lost before any was told.
    """

    def __init__(self, *sinks: OutcomeSink) -> None:
        self._sinks = sinks
        self._reported: set[int] = set()
        self.errors: Counter[str] = Counter()

    def lose(self) -> None:
        """Count something that could not even be handed out."""
        self.errors["Session"] += 1

    def observe(self, outcome: RequestOutcome) -> None:
        """Hand `outcome` to every sink."""
        for number, sink in enumerate(self._sinks):
            try:
                sink.observe(outcome)
            except Exception:
                self.errors[type(sink).__name__] += 1
                if number not in self._reported:
                    self._reported.add(number)
                    logger.exception("%s failed; further failures of it are not logged", type(sink).__name__)
