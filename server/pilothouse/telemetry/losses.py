"""What is lost is said, but not at every loss."""

import logging
import time

logger = logging.getLogger(__name__)

_SECONDS = 60.0


class Losses:
    """Tells the log of losses, at most once a minute. what: in the plural, as in `log lines`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._silent_until = 0.0

    def tell(self, total: int, why: str) -> None:
        """`total` have been lost so far, the last of them because of `why`."""
        now = time.monotonic()
        if now < self._silent_until:
            return
        self._silent_until = now + _SECONDS
        logger.warning("Lost %d %s so far: %s; nothing else is lost. Told once a minute", total, self._what, why)
