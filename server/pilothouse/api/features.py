"""SAE features as probes."""

from pilothouse.core.errors import ArtefactError
from pilothouse.probing import Probe
from pilothouse.probing.feature import feature_probe
from pilothouse.steering import Sae


def watched_feature(name: str, sae: Sae, feature: int, *, flag_above: float = 0.0, adhoc: bool = False) -> Probe:
    """A feature of `sae` as a probe; ArtefactError when one feature's activation cannot be read by itself."""
    if sae.why_not_read is not None:
        raise ArtefactError(f"SAE {sae.name!r} has features that can only be added: {sae.why_not_read}")
    found = sae.feature(feature)
    assert found.encoder is not None
    return feature_probe(
        name,
        sae.layer,
        found.encoder,
        found.bias,
        found.threshold,
        found.max_act,
        flag_above=flag_above,
        adhoc=adhoc,
    )
