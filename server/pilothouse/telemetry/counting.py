"""From a finished request to counts."""

from dataclasses import dataclass

from pilothouse.core.records import ChoiceOutcome, ProbeOutcome, RequestOutcome
from pilothouse.telemetry.drift import Drift
from pilothouse.telemetry.instruments import Cause, Instruments
from pilothouse.telemetry.names import NONE, Names, reason, route


@dataclass(frozen=True)
class Counting:
    """Counts one request: `outcome`, called `model` and `steering` in labels."""

    outcome: RequestOutcome
    model: str
    steering: str
    cause: Cause
    names: Names
    to: Instruments
    drift: Drift

    def count(self) -> None:
        """All of it."""
        outcome, model, vector = self.outcome, self.model, self.names.vector
        self.to.count("pilothouse_requests_total", model, route(outcome.route), self.steering, cause=self.cause)
        for name in outcome.steered_by:
            self.to.count("pilothouse_steering_requests_total", model, vector(name))
        for name, strength in outcome.strengths.items():
            self.to.strength(model, vector(name), value=strength)
        for choice in outcome.choices:
            self._choice(choice)

    def _choice(self, choice: ChoiceOutcome) -> None:
        for vector, n_edited in choice.tokens_edited.items():
            self.to.count("pilothouse_steering_tokens_total", self.model, self.names.vector(vector), by=n_edited)
        for gap in choice.gaps:
            self.to.count("pilothouse_engine_gaps_total", self.model, gap)
        for gate in choice.gates:
            labels = (self.model, self.names.vector(gate.vector), self.names.probe(gate.probe), gate.action)
            self.to.count("pilothouse_gate_firings_total", *labels)
            self.to.count("pilothouse_gate_positions_total", *labels, by=gate.n_open)
        for probe in choice.probes:
            self._probe(probe)

    def _probe(self, found: ProbeOutcome) -> None:
        labels = (self.model, self.names.probe(found.probe))
        self.to.count("pilothouse_probe_tokens_total", *labels, by=found.n_scored)
        self.to.count("pilothouse_probe_expected_tokens_total", *labels, by=found.n_expected)
        if found.activity is not None:
            self.to.count("pilothouse_feature_tokens_total", *labels, by=found.n_scored)
            self.to.count("pilothouse_feature_active_tokens_total", *labels, by=found.activity.n_active)
            self.to.count("pilothouse_feature_activation_total", *labels, by=found.activity.total)
        if found.prompt_end is not None:
            end = found.prompt_end
            self.to.score("pilothouse_probe_prompt_end", *labels, self.steering, value=end, cause=self.cause)
        if found.score is None:
            self.to.count("pilothouse_probe_unscored_total", *labels, reason(found.reason))
            return
        self.to.score("pilothouse_probe_score", *labels, self.steering, value=found.score, cause=self.cause)
        flagged = str(found.flagged).lower()
        self.to.count("pilothouse_probe_requests_total", *labels, flagged, cause=self.cause)
        if self.steering == NONE:
            # The reference is of an unsteered model.
            self.drift.observe(*labels, found.version, found.score)
