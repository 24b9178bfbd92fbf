"""Steering vectors as other libraries publish them, read as ours: one module a format, and which one a file is of.

Every importer counts layers as this project does: L is the residual stream after the 0-based decoder block L.
"""

from pilothouse.steering.vector_formats.found import ImportOptions
from pilothouse.steering.vector_formats.importer import import_vector

__all__ = ["ImportOptions", "import_vector"]
