"""An SAE feature watched as a probe: its pre-activation is the logit, its activation the score."""

from pilothouse.core.sites import Float32
from pilothouse.probing.calibration import Rectified
from pilothouse.probing.probe import Probe

LABEL = "active"


def feature_probe(
    name: str,
    layer: int,
    encoder: Float32,
    bias: float,
    threshold: float,
    max_act: float | None,
    *,
    flag_above: float = 0.0,
    adhoc: bool = False,
) -> Probe:
    """The probe whose logit at a token is h . encoder + bias, with h the stream after block `layer`.

    Its score is the feature's activation (the logit where it is above `threshold`, else 0) in units of `max_act` where
    that is known, so it may exceed 1; a sequence has the score of its most active token, and is flagged beyond
    `flag_above`. adhoc: nobody configured it, so metrics do not name it.
    """
    activation = Rectified(threshold=threshold, unit=max_act or 1.0)
    return Probe(
        name=name,
        label=LABEL,
        alarm="high",
        aggregate="max",
        threshold=flag_above,
        weights={layer: encoder},
        bias=bias,
        calibration=activation,
        token_calibration=activation,
        adhoc=adhoc,
    )
