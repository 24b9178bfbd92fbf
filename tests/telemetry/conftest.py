import pytest
from prometheus_client import CollectorRegistry
from telemetry_support.outcomes import make_metrics

from pilothouse.telemetry.metrics import Metrics


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """Those of a server with probe `p`, vectors `v` and `w`, and an SAE `s`."""
    return make_metrics(registry)
