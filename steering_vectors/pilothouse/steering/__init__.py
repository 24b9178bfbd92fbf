"""Steering vectors and SAE features: values, files, what a request may carry inline, extraction, and doses."""

from pilothouse.steering.dose import DoseReport, measure_dose, with_dose
from pilothouse.steering.dose_items import DosePrompt, load_prompts, load_texts
from pilothouse.steering.dose_range import default_strengths
from pilothouse.steering.dose_setup import DoseData, DoseProbe, DoseSettings, dose_key
from pilothouse.steering.dose_work import WorkFile
from pilothouse.steering.extraction import Extraction, Recipe, extract_vector, extraction_key
from pilothouse.steering.inline import decode_inline
from pilothouse.steering.pairs import ContrastPair, load_pairs
from pilothouse.steering.read_work import ReadWork
from pilothouse.steering.sae import Sae, SaeFeature
from pilothouse.steering.sae_file import load_sae, load_saes, sae_from_upload
from pilothouse.steering.sae_save import SaeDtype, save_sae
from pilothouse.steering.vector import Vector
from pilothouse.steering.vector_file import load_vector, load_vectors, save_vector, vector_from_bytes
from pilothouse.steering.vector_formats import ImportOptions, import_vector

__all__ = [
    "ContrastPair",
    "DoseData",
    "DoseProbe",
    "DosePrompt",
    "DoseReport",
    "DoseSettings",
    "Extraction",
    "ImportOptions",
    "ReadWork",
    "Recipe",
    "Sae",
    "SaeDtype",
    "SaeFeature",
    "Vector",
    "WorkFile",
    "decode_inline",
    "default_strengths",
    "dose_key",
    "extract_vector",
    "extraction_key",
    "import_vector",
    "load_pairs",
    "load_prompts",
    "load_sae",
    "load_saes",
    "load_texts",
    "load_vector",
    "load_vectors",
    "measure_dose",
    "sae_from_upload",
    "save_sae",
    "save_vector",
    "vector_from_bytes",
    "with_dose",
]
