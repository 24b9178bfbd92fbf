"""Looks for changes in the places of the registry, and has it read them again."""

import asyncio
import logging

from pilothouse.api.registry import Registry
from pilothouse.core.errors import PilothouseError
from pilothouse.core.url_errors import masked

logger = logging.getLogger(__name__)


async def watch(registry: Registry, seconds: float) -> None:
    """Look every so many seconds, for ever. What cannot be read is tried again the next time, and logged once.

    Polling, because events of the file system do not tell of changes on network drives, mounted volumes and URLs.
    """
    seen: tuple[str, ...] | None = None
    complaint = ""
    while True:
        await asyncio.sleep(seconds)
        try:
            # Taken before the files are read: what changes meanwhile is found the next time.
            found = await asyncio.to_thread(registry.signature)
            if found != seen:
                _tell(await asyncio.to_thread(registry.reload))
                seen = found
            registry.reload_error = None
            complaint = ""
        except PilothouseError as error:
            registry.reload_error = masked(str(error))
            if str(error) != complaint:
                logger.error("The registry could not be read again: %s", error)
            complaint = str(error)
        except Exception as error:
            registry.reload_error = f"{type(error).__name__}, see the server's log"
            logger.exception("The registry could not be read again")


def _tell(changes: dict[str, dict[str, list[str]]]) -> None:
    told = [
        f"{kind} {how}: {', '.join(names)}" for kind, found in changes.items() for how, names in found.items() if names
    ]
    if told:
        logger.info("The registry was read again; %s", "; ".join(told))
