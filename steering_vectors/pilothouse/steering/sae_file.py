"""Loading of SAEs from files and folders of any format that `sae_formats` knows."""

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from pilothouse.core.errors import ArtefactError
from pilothouse.steering.sae import FileState, Sae
from pilothouse.steering.sae_formats.native import MATRICES, read_native, why_not
from pilothouse.steering.sae_formats.registry import Found, detect_below, detect_one, has_weights, known_formats
from pilothouse.steering.sae_formats.tensors import SafetensorsFile
from pilothouse.steering.sae_rows import blocks, first_not_finite


def load_sae(path: Path, name: str | None = None) -> Sae:
    """The SAE at a file or in a folder, called `name`, else as its sidecar or its publisher calls it.

    Only headers, biases and statistics are read; rows are read when they are asked for. ArtefactError names the path
    and why the SAE cannot steer.
    """
    try:
        return _load(detect_one(path, name))
    except (ArtefactError, SafetensorError, OSError) as error:
        raise ArtefactError(f"{path}: {error}") from None


def load_saes(path: Path) -> dict[str, Sae]:
    """The SAE or SAEs at `path` itself, a file or a folder, else every one in its subfolders, by name.

    ArtefactError names the first that cannot steer, two of one name, and a folder whose files are of no known format.
    """
    if path.is_file():
        sae = load_sae(path)
        return {sae.name: sae}
    if not path.is_dir():
        raise ArtefactError(f"{path} is not a folder")
    saes: dict[str, Sae] = {}
    where = path
    try:
        for found in detect_below(path):
            where = found[1].weights
            sae = _load(found)
            if sae.name in saes:
                raise ArtefactError(f"another SAE is already called {sae.name!r}: give one a name in pilothouse.json")
            saes[sae.name] = sae
    except (ArtefactError, SafetensorError, OSError) as error:
        raise ArtefactError(f"{where}: {error}") from None
    if not saes and has_weights(path):
        raise ArtefactError(f"{path}: no known format of SAE below; those that are known: {known_formats()}")
    return saes


def sae_from_upload(path: Path) -> Sae:
    """The SAE in a native file that somebody else sent and that lies at `path`, under whatever name.

    Every number in it is read, a block of features at a time. ArtefactError says what is wrong, without the path, which
    means nothing to who sent it; of a file of another form it names the command that makes a native one.
    """
    try:
        if (why := why_not(path)) is not None:
            raise ArtefactError(
                f"the file {why}: an SAE is sent as one native file, which "
                "`pilothouse sae convert` makes of any known format"
            )
        sae = read_native(path)
        _check_rows(path)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(str(error)) from None
    return sae


def _check_rows(path: Path) -> None:
    file = SafetensorsFile(path)
    for name in MATRICES:
        for start, stop in blocks(*file.shapes[name]) if name in file.shapes else ():
            if (bad := first_not_finite(file.take(name, start, stop, 0))) is not None:
                raise ArtefactError(f"row {start + bad} of {name} holds NaN or infinite numbers")


def _load(found: Found) -> Sae:
    a_format, source = found
    # Taken before the file is opened, so that one that is replaced meanwhile shows.
    opened = FileState.of(source.weights) if source.weights.exists() else None
    return replace(a_format.load(source), opened=opened)
