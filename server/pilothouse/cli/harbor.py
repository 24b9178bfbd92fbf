"""How the embedded model is served when nothing else is asked for."""

from collections.abc import Sequence

HARBOR_NAME = "harbor"
HARBOR_MAX_MODEL_LEN = 1024
HARBOR_CACHE_BYTES = 256 * 1024 * 1024

_DEFAULTS = {
    "--served-model-name": HARBOR_NAME,
    "--dtype": "float32",
    "--max-model-len": str(HARBOR_MAX_MODEL_LEN),
    "--kv-cache-memory-bytes": str(HARBOR_CACHE_BYTES),
    "--max-num-seqs": "64",
}


def harbor_arguments(given: Sequence[str]) -> list[str]:
    """vLLM flags for Harbor: float32 and a small cache, each unless it was given."""
    flags = {argument.split("=", 1)[0].replace("_", "-") for argument in given}
    defaults = [word for flag, value in _DEFAULTS.items() if flag not in flags for word in (flag, value)]
    return [*defaults, *given]
