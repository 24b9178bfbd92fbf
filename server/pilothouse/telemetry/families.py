"""Every metric of Pilothouse's own: its name, kind, labels and meaning. docs/metrics.md says the same."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Family:
    """One metric. name: as it is scraped, `_total` of counters included; help: one sentence."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


_MODEL = ("model_name",)
_PROBE = ("model_name", "probe")
_VECTOR = ("model_name", "vector")
_SCORED = ("model_name", "probe", "steering")
_GATE = ("model_name", "vector", "probe", "action")

_REQUESTS = (
    Family("pilothouse_requests_total", "counter", ("model_name", "route", "steering"), "Finished requests."),
    Family("pilothouse_probe_score", "histogram", _SCORED, "Calibrated score of a probe on one choice."),
    Family("pilothouse_probe_prompt_end", "histogram", _SCORED, "Score of a probe at the last prompt token."),
    Family("pilothouse_probe_requests_total", "counter", (*_PROBE, "flagged"), "Choices that a probe scored."),
    Family("pilothouse_probe_unscored_total", "counter", (*_PROBE, "reason"), "Choices that a probe could not score."),
    Family("pilothouse_probe_tokens_total", "counter", _PROBE, "Generated tokens that a probe scored."),
    Family("pilothouse_probe_expected_tokens_total", "counter", _PROBE, "Generated tokens that it could have scored."),
    Family("pilothouse_feature_tokens_total", "counter", _PROBE, "Tokens at which a watched feature was read."),
    Family("pilothouse_feature_active_tokens_total", "counter", _PROBE, "Tokens at which it was active."),
    Family("pilothouse_feature_activation_total", "counter", _PROBE, "Sum of its activations."),
    Family("pilothouse_steering_requests_total", "counter", _VECTOR, "Requests that a vector steered."),
    Family("pilothouse_steering_tokens_total", "counter", _VECTOR, "Tokens that a vector edited."),
    Family("pilothouse_steering_strength", "histogram", _VECTOR, "How far a vector pushed, in lengths of the stream."),
    Family("pilothouse_gate_firings_total", "counter", _GATE, "Gates that opened, one a choice."),
    Family("pilothouse_gate_positions_total", "counter", _GATE, "Positions at which gates were open."),
    Family("pilothouse_engine_gaps_total", "counter", (*_MODEL, "kind"), "Choices of which the engine left out some."),
)

_REGISTRY = (
    Family(
        "pilothouse_probe_info",
        "gauge",
        (*_PROBE, "version", "layers", "aggregate", "calibration", "alarm"),
        "A registered probe; always 1.",
    ),
    Family("pilothouse_probe_threshold", "gauge", _PROBE, "Score beyond which a probe flags."),
    Family("pilothouse_vector_info", "gauge", (*_VECTOR, "version", "layers"), "A registered vector; always 1."),
    Family("pilothouse_probe_drift_psi", "gauge", _PROBE, "Population stability index of recent scores."),
    Family("pilothouse_probe_drift_scores", "gauge", _PROBE, "Recent scores behind the index, old ones for less."),
)

_QUALITY = (
    Family("pilothouse_probe_labels_total", "counter", (*_PROBE, "flagged", "value"), "Labels that were taken."),
    Family("pilothouse_probe_labelled", "gauge", _PROBE, "Labelled records of the probe's present version."),
    Family("pilothouse_probe_precision", "gauge", _PROBE, "Share of flagged labelled records that were bad."),
    Family("pilothouse_probe_recall", "gauge", _PROBE, "Share of bad labelled records that were flagged."),
    Family("pilothouse_probe_calibration_error", "gauge", _PROBE, "Expected calibration error of labelled records."),
)

_SERVER = (
    Family("pilothouse_step_seconds_total", "counter", (*_MODEL, "phase"), "Time of engine steps spent on our work."),
    Family("pilothouse_steps_total", "counter", _MODEL, "Engine steps that those seconds are of."),
    Family("pilothouse_records_written_total", "counter", (), "Records that the store took."),
    Family("pilothouse_records_dropped_total", "counter", ("reason",), "Records that were lost."),
    Family("pilothouse_records_queued", "gauge", (), "Records that wait to be written."),
    Family("pilothouse_spans_total", "counter", ("outcome",), "Spans of requests."),
    Family("pilothouse_log_lines_total", "counter", ("outcome",), "Lines of the request log."),
    Family("pilothouse_sink_errors_total", "counter", ("sink",), "Outcomes that a sink failed to take."),
)

FAMILIES: dict[str, Family] = {family.name: family for family in (*_REQUESTS, *_REGISTRY, *_QUALITY, *_SERVER)}
"""By name."""
