"""SAE features that are read: as probes, and by edits that depend on their activation."""

from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.probing import Probe
from pilothouse.probing.feature import feature_probe
from pilothouse.steering import Sae, SaeFeature


def require_readable(sae: Sae) -> None:
    """ArtefactError when one feature's activation cannot be read by itself."""
    if sae.why_not_read is not None:
        raise ArtefactError(f"SAE {sae.name!r} has features that can only be added: {sae.why_not_read}")


def readable_feature(sae: Sae, feature: int) -> tuple[SaeFeature, Float32]:
    """A feature and its encoder row; ArtefactError when it cannot be read, or its numbers are not finite."""
    require_readable(sae)
    found = sae.feature(feature)
    assert found.encoder is not None
    return found, found.encoder


def watched_feature(name: str, sae: Sae, feature: int, *, flag_above: float = 0.0, adhoc: bool = False) -> Probe:
    """A feature of `sae` as a probe; ArtefactError as from `readable_feature`."""
    found, encoder = readable_feature(sae, feature)
    return feature_probe(
        name, sae.layer, encoder, found.bias, found.threshold, found.max_act, flag_above=flag_above, adhoc=adhoc
    )
