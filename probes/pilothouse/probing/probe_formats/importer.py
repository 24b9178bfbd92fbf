"""Which format a probe is of, and the probe in it."""

from pathlib import Path

from pilothouse.core.errors import ArtefactError
from pilothouse.core.foreign import read_foreign, refuse_pickle
from pilothouse.probing.probe import Probe
from pilothouse.probing.probe_formats.options import ProbeOptions
from pilothouse.probing.probe_formats.value_head import CONFIG, HEAD, read_value_head

READABLE = f"a folder of hallucination_probes ({CONFIG}, {HEAD})"


def import_probe(path: Path, options: ProbeOptions | None = None) -> Probe:
    """The probe in a folder, or file of it, that another project published.

    ArtefactError names the file and what is wrong with it; pickles, scikit-learn's among them, are refused.
    """
    try:
        folder = path.parent if path.name in (CONFIG, HEAD) else path
        if folder.is_dir() and ((folder / CONFIG).exists() or (folder / HEAD).exists()):
            return read_value_head(folder, options or ProbeOptions())
        if path.is_dir():
            raise ArtefactError(f"the folder has neither {CONFIG} nor {HEAD}")
        refuse_pickle(path, read_foreign(path))
        raise ArtefactError(f"not a probe of a known format: read here is {READABLE}")
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from None
