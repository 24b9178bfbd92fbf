"""Prometheus metrics of scored and steered requests.

Labels hold configured names only (models, probes, vectors) and words from fixed lists; never anything a client wrote.
"""

from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from pilothouse.core.records import ChoiceOutcome, ProbeOutcome, RequestOutcome

_STEP_COUNT = 20


def score_buckets(thresholds: Iterable[float]) -> tuple[float, ...]:
    """Steps of 0.05 and every threshold itself, so that what lies beyond a threshold can be counted exactly."""
    steps = {i / _STEP_COUNT for i in range(1, _STEP_COUNT + 1)}
    return tuple(sorted(steps | {float(t) for t in thresholds}))


class Metrics:
    """The counters and histograms of one process. An `OutcomeSink`.

    thresholds: those of the configured probes; registry: where they are registered, by default the one that vLLM's
    ``/metrics`` shows.
    """

    def __init__(self, thresholds: Iterable[float] = (), registry: CollectorRegistry = REGISTRY) -> None:
        scored = ["model_name", "probe", "steering"]
        buckets = score_buckets(thresholds)
        self._score = Histogram(
            "pilothouse_probe_score",
            "Calibrated score of a probe on one choice, after aggregation.",
            scored,
            buckets=buckets,
            registry=registry,
        )
        self._prompt_end = Histogram(
            "pilothouse_probe_prompt_end",
            "Score of a probe at the last prompt token, before anything is generated.",
            scored,
            buckets=buckets,
            registry=registry,
        )

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(name, help_text, ["model_name", *labels], registry=registry)

        self._requests = counter("pilothouse_probe_requests", "Choices that a probe scored.", "probe", "flagged")
        self._unscored = counter(
            "pilothouse_probe_unscored", "Choices that a probe could not score.", "probe", "reason"
        )
        self._tokens = counter("pilothouse_probe_tokens", "Generated tokens that a probe scored.", "probe")
        self._steered = counter("pilothouse_steering_requests", "Requests that a vector steered.", "vector")
        self._edited = counter("pilothouse_steering_tokens", "Tokens that a vector edited.", "vector")
        self._gaps = counter(
            "pilothouse_engine_gaps", "Choices of which the engine left out positions, by what it left out.", "kind"
        )

    def observe(self, outcome: RequestOutcome) -> None:
        """Count one finished request."""
        for vector in outcome.steered_by:
            self._steered.labels(outcome.model_name, vector).inc()
        for choice in outcome.choices:
            self._observe_choice(outcome, choice)

    def _observe_choice(self, outcome: RequestOutcome, choice: ChoiceOutcome) -> None:
        for vector, n_edited in choice.tokens_edited.items():
            self._edited.labels(outcome.model_name, vector).inc(n_edited)
        for kind in choice.gaps:
            self._gaps.labels(outcome.model_name, kind).inc()
        for probe in choice.probes:
            self._observe_probe(outcome, probe)

    def _observe_probe(self, outcome: RequestOutcome, probe: ProbeOutcome) -> None:
        labels = (outcome.model_name, probe.probe, outcome.steering)
        self._tokens.labels(outcome.model_name, probe.probe).inc(probe.n_scored)
        if probe.prompt_end is not None:
            self._prompt_end.labels(*labels).observe(probe.prompt_end)
        if probe.score is None:
            self._unscored.labels(outcome.model_name, probe.probe, probe.reason or "unknown").inc()
            return
        self._score.labels(*labels).observe(probe.score)
        self._requests.labels(outcome.model_name, probe.probe, str(probe.flagged).lower()).inc()
