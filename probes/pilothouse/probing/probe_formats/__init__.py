"""Probes as other projects publish them, read as ours: one module a format, and which one a file is of."""

from pilothouse.probing.probe_formats.importer import import_probe
from pilothouse.probing.probe_formats.options import ProbeOptions

__all__ = ["ProbeOptions", "import_probe"]
