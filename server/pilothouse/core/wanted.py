"""Which files of a place are read at all, by their names."""

from fnmatch import fnmatchcase

WANTED = ("*.safetensors", "*.npz", "*.pt", "*.pth", "*.json", "*.gguf", "*.svec", "*probe_head.bin")
"""What is fetched of a place: the formats that are read here, and nothing else that may lie beside them."""


def is_wanted(path: str) -> bool:
    """Whether a file of this name, whatever folders stand before it, is of a format that is read here."""
    return any(fnmatchcase(path, pattern) for pattern in WANTED)
