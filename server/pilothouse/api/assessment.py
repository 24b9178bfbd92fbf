"""What labelled records say of the probes that are served, as metrics: looked up now and then, and at every label."""

import asyncio
import logging

from pilothouse.api.registry import Registry
from pilothouse.probing.quality import quality
from pilothouse.records.database import DatabaseError
from pilothouse.records.store import RecordStore
from pilothouse.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

ASSESSMENT_SECONDS = 60.0
"""Labels may come from another server that shares the database."""


def assess(store: RecordStore, registry: Registry, metrics: Metrics) -> None:
    """Show how good each probe is, by the labels of its present version. Blocks; DatabaseError."""
    model, probes = registry.shape.model, registry.catalogue.probes
    found = {
        counted.probe: quality(counted.counts, counted.bins, probes[counted.probe].alarm)
        for counted in store.quality()
        if counted.model == model and counted.probe in probes and probes[counted.probe].version == counted.version
    }
    metrics.show_quality(model, found)


async def keep_assessing(store: RecordStore, registry: Registry, metrics: Metrics) -> None:
    """Do so for ever. While the database is away, what was last found is shown."""
    while True:
        try:
            await asyncio.to_thread(assess, store, registry, metrics)
        except DatabaseError as error:
            logger.debug("Labelled records could not be read: %s", error)
        except Exception:
            logger.exception("Labelled records could not be assessed")
        await asyncio.sleep(ASSESSMENT_SECONDS)
