"""Steering vectors and SAE features: values, files, what a request may carry inline, and extraction."""

from pilothouse.steering.extraction import extract_mean_difference
from pilothouse.steering.inline import decode_inline
from pilothouse.steering.pairs import ContrastPair, load_pairs
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_file import load_sae, load_saes
from pilothouse.steering.vector import Vector
from pilothouse.steering.vector_file import load_vector, load_vectors, save_vector, vector_from_bytes

__all__ = [
    "ContrastPair",
    "Sae",
    "Vector",
    "decode_inline",
    "extract_mean_difference",
    "load_pairs",
    "load_sae",
    "load_saes",
    "load_vector",
    "load_vectors",
    "save_vector",
    "vector_from_bytes",
]
