"""Finished requests made up, and what metrics must say of them."""

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from pilothouse.core.records import ChoiceOutcome, GapKind, GateOutcome, ProbeOutcome, RequestOutcome
from pilothouse.core.trace import TraceContext
from pilothouse.telemetry.metrics import Metrics
from pilothouse.telemetry.registry_info import ProbeInfo, VectorInfo

MODEL = "m"
REFERENCE: dict[str, list[float]] = {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [400, 100, 100, 400]}

STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
EXACT = 1e-12
"""Relative; sums of activations depend on the order in which they are added."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


def probe_info(name: str = "p", threshold: float = 0.873, version: str = "sha256:1", **more: object) -> ProbeInfo:
    return ProbeInfo(name, version, "2,3", "max", "platt", "high", threshold, **more)


VECTORS = (VectorInfo("v", "sha256:3", "1"), VectorInfo("w", "sha256:4", "1,2"))


def make_metrics(
    registry: CollectorRegistry, *probes: ProbeInfo, clock: Callable[[], float] = lambda: 1000.0
) -> Metrics:
    """Metrics of a server with vectors `v` and `w`, an SAE `s`, and these probes, or else `p`."""
    metrics = Metrics(registry, clock)
    metrics.show_registry(MODEL, probes or (probe_info(),), VECTORS, ["s"])
    return metrics


def outcome(
    *probes: ProbeOutcome,
    edited: dict[str, int] | None = None,
    steering: str = "none",
    gaps: tuple[GapKind, ...] = (),
    gates: tuple[GateOutcome, ...] = (),
    response_id: str = "id",
    strengths: dict[str, float] | None = None,
    trace: TraceContext | None = None,
) -> RequestOutcome:
    """One request with one choice."""
    choice = ChoiceOutcome(probes, edited or {}, gaps, gates)
    return RequestOutcome(
        response_id,
        MODEL,
        "/v1/completions",
        steering,
        tuple(edited or ()),
        0.0,
        (choice,),
        strengths=strengths or {},
        trace=trace,
    )


def scored(score: float, flagged: bool = False, probe: str = "p", version: str = "sha256:1") -> ProbeOutcome:
    return ProbeOutcome(probe, score, None, flagged, 1, n_expected=1, version=version)


def samples_of(families: Iterable[Metric]) -> Samples:
    """All samples, but for the times at which series began."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def parsed(page: str) -> Samples:
    """The samples of a page in the text format."""
    return samples_of(text_string_to_metric_families(page))


def counted(samples: Samples) -> Samples:
    """Those of ours that count requests and have begun to."""
    return {
        key: value
        for key, value in samples.items()
        if key[0].startswith("pilothouse_") and key[0].endswith(("_total", "_bucket", "_count")) and value
    }


def expected(outcomes: Iterable[RequestOutcome], thresholds: dict[str, float]) -> Samples:
    """What metrics must count of these requests, whose names are all configured ones, or `adhoc`."""
    found: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()

    def add(name: str, by: float = 1, **labels: str) -> None:
        found[f"pilothouse_{name}", frozenset({**labels, "model_name": request.model_name}.items())] += by  # type: ignore[assignment]

    def place(name: str, value: float, probe: str) -> None:
        labels = {"probe": probe, "steering": request.steering}
        add(f"{name}_count", 1, **labels)
        for bound in {*(i / 20 for i in range(1, 21)), thresholds.get(probe, 0.0), float("inf")}:
            if value <= bound:
                add(f"{name}_bucket", 1, **labels, le="+Inf" if bound == float("inf") else str(bound))

    for request in outcomes:
        add("requests_total", route=request.route, steering=request.steering)
        for vector in request.steered_by:
            add("steering_requests_total", vector=vector)
        for vector, strength in request.strengths.items():
            add("steering_strength_count", vector=vector)
            for bound in (*STRENGTHS, float("inf")):
                if strength <= bound:
                    add("steering_strength_bucket", vector=vector, le="+Inf" if bound == float("inf") else str(bound))
        for choice in request.choices:
            for vector, n in choice.tokens_edited.items():
                add("steering_tokens_total", n, vector=vector)
            for gap in choice.gaps:
                add("engine_gaps_total", kind=gap)
            for gate in choice.gates:
                labels = {"vector": gate.vector, "probe": gate.probe, "action": gate.action}
                add("gate_firings_total", 1, **labels)
                add("gate_positions_total", gate.n_open, **labels)
            for said in choice.probes:
                add("probe_tokens_total", said.n_scored, probe=said.probe)
                add("probe_expected_tokens_total", said.n_expected, probe=said.probe)
                if said.activity is not None:
                    add("feature_tokens_total", said.n_scored, probe=said.probe)
                    add("feature_active_tokens_total", said.activity.n_active, probe=said.probe)
                    add("feature_activation_total", said.activity.total, probe=said.probe)
                if said.prompt_end is not None:
                    place("probe_prompt_end", said.prompt_end, said.probe)
                if said.score is None:
                    add("probe_unscored_total", probe=said.probe, reason=str(said.reason))
                else:
                    place("probe_score", said.score, said.probe)
                    add("probe_requests_total", probe=said.probe, flagged=str(said.flagged).lower())
    return {key: float(value) for key, value in found.items() if value}
