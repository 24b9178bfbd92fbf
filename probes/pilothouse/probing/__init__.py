"""Linear probes: values, files, what their readouts mean, training and evaluation."""

from pilothouse.probing.activation_cache import ActivationCache
from pilothouse.probing.aggregation import ProbeStats
from pilothouse.probing.calibration import Isotonic, Platt
from pilothouse.probing.evaluation import Evaluation, evaluate_probe
from pilothouse.probing.probe import Probe
from pilothouse.probing.probe_file import load_probe, load_probes, probe_from_bytes, save_probe
from pilothouse.probing.probe_formats import ProbeOptions, import_probe
from pilothouse.probing.recalibration import Proposal, recalibrate
from pilothouse.probing.report import write_card
from pilothouse.probing.scoring import score_items
from pilothouse.probing.statements import LabelledItem, Span, load_statements
from pilothouse.probing.training import train_probe
from pilothouse.probing.verdicts import LabelledScore, load_labels

__all__ = [
    "ActivationCache",
    "Evaluation",
    "Isotonic",
    "LabelledItem",
    "LabelledScore",
    "Platt",
    "Probe",
    "ProbeOptions",
    "ProbeStats",
    "Proposal",
    "Span",
    "evaluate_probe",
    "import_probe",
    "load_labels",
    "load_probe",
    "load_probes",
    "load_statements",
    "probe_from_bytes",
    "recalibrate",
    "save_probe",
    "score_items",
    "train_probe",
    "write_card",
]
