"""How the embedded model is served when nothing else is asked for."""

from collections.abc import Sequence
from pathlib import Path

from pilothouse.core.config import EngineLayout, Limits
from pilothouse.harbor import served
from pilothouse.harbor.paths import presets_file

HARBOR_NAME, HARBOR_MAX_MODEL_LEN, HARBOR_CACHE_BYTES = served.NAME, served.MAX_MODEL_LEN, served.CACHE_BYTES

LEAST_CHAIN_STEPS, LEAST_READOUTS, LEAST_EDITS = 2, 2, 2
"""What a server must have room for with Harbor's presets: two edits behind gates, and a probe beside theirs."""

_DEFAULTS = {f"--{name.replace('_', '-')}": str(value) for name, value in served.SETTINGS.items()}


def harbor_arguments(given: Sequence[str]) -> list[str]:
    """vLLM flags for Harbor: float32 and a small cache, each unless it was given."""
    flags = {argument.split("=", 1)[0].replace("_", "-") for argument in given}
    defaults = [word for flag, value in _DEFAULTS.items() if flag not in flags for word in (flag, value)]
    return [*defaults, *given]


def harbor_presets(layout: EngineLayout, limits: Limits) -> Path | None:
    """Harbor's own presets; None where there is no room for them or strength is limited, so that every server starts
    whose own files are sound."""
    roomy = layout.chain_steps >= LEAST_CHAIN_STEPS and layout.readouts >= LEAST_READOUTS
    return presets_file() if roomy and limits.max_edits >= LEAST_EDITS and limits.max_strength is None else None
