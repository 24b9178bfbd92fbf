"""Every metric that may be asked for: Pilothouse's own, and those of vLLM's that the dashboards show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pilothouse.telemetry.families import FAMILIES

ENGINE = ("model_name", "engine")


@dataclass(frozen=True)
class Family:
    """One metric; the name of a counter ends with `_total`."""

    name: str
    kind: str
    labels: tuple[str, ...]

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which Prometheus stores it."""
        return (
            tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
            if self.kind == "histogram"
            else (self.name,)
        )


VLLM = (
    Family("num_requests_running", "gauge", ENGINE),
    Family("num_requests_waiting", "gauge", ENGINE),
    Family("kv_cache_usage_perc", "gauge", ENGINE),
    Family("prompt_tokens_total", "counter", ENGINE),
    Family("generation_tokens_total", "counter", ENGINE),
    Family("num_preemptions_total", "counter", ENGINE),
    Family("prefix_cache_queries_total", "counter", ENGINE),
    Family("prefix_cache_hits_total", "counter", ENGINE),
    Family("request_success_total", "counter", (*ENGINE, "finished_reason")),
    Family("time_to_first_token_seconds", "histogram", ENGINE),
    Family("inter_token_latency_seconds", "histogram", ENGINE),
    Family("e2e_request_latency_seconds", "histogram", ENGINE),
    Family("request_queue_time_seconds", "histogram", ENGINE),
)
"""Names without `vllm:`."""


def own() -> tuple[Family, ...]:
    """Pilothouse's metrics, as its telemetry lists them."""
    return tuple(Family(family.name, family.kind, tuple(family.labels)) for family in FAMILIES.values())


def stored() -> dict[str, tuple[str, ...]]:
    """All names that Prometheus may store, with their labels."""
    found = {name: family.labels for family in own() for name in family.samples}
    return found | {f"vllm:{name}": family.labels for family in VLLM for name in family.samples}


def declared_by_vllm() -> dict[str, str]:
    """The kind of each metric in the source of the vLLM that is installed, by its name there."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")
    pattern = r'self\._(gauge|counter|histogram)_cls\(\s*name="vllm:([a-z0-9_]+)"'
    return {name: kind for kind, name in re.findall(pattern, source)}
