"""What the formats have in common: how one is found, what it is read from, and how tensors are checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilothouse.core.artefact import check_name
from pilothouse.core.errors import ArtefactError
from pilothouse.core.sites import Float32
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_formats.sidecar import SIDECAR, Place, Sidecar
from pilothouse.steering.sae_formats.tensors import SafetensorsFile, TensorFile, names
from pilothouse.steering.sae_rows import Encoder, Rows

STATISTICS = ("feature_stats.safetensors", "max_acts.safetensors")


@dataclass(frozen=True)
class Source:
    """One SAE on disk. `folder` has configuration, sidecar and statistics; `name` is what the caller calls it."""

    weights: Path
    folder: Path
    sidecar: Sidecar
    name: str | None = None

    def called(self, default: str) -> str:
        """The SAE's name: the caller's, else the sidecar's, else `default`."""
        return check_name(self.name or self.sidecar.name or default)

    @property
    def path(self) -> str:
        """The weights' path, in which publishers' names of repositories and folders are looked for."""
        return self.weights.as_posix()


@dataclass(frozen=True)
class SaeFormat:
    """A layout of files. `find`: folder and weights file of each SAE of this format at a path, a folder or a file;
    `last_resort`: asked only where no other format finds anything, since its files have names like any other's;
    `by_card`: known by what a file says of itself, so that it is of no other format, whatever it is called."""

    key: str
    title: str
    layout: str
    find: Callable[[Path], Sequence[tuple[Path, Path]]]
    load: Callable[[Source], Sae]
    last_resort: bool = False
    by_card: bool = False


@dataclass(frozen=True)
class Facts:
    """What a loader found out about an SAE. `reading` is its encoder, or why there is none."""

    name: str
    place: Place
    d_in: int
    d_sae: int
    architecture: str
    activation: str
    decoder: Rows
    reading: Encoder | str
    config: Mapping[str, Any]
    settings: str = ""
    alone: bool = True
    """No other SAE shares the folder, so that statistics in it are this one's."""


def make_sae(format_key: str, source: Source, facts: Facts) -> Sae:
    """The SAE of a publisher's format; its card is what was found out, and the publisher's configuration."""
    card = {
        "format": format_key,
        "model": facts.place.model,
        "layer": facts.place.layer,
        "d_in": facts.d_in,
        "d_sae": facts.d_sae,
        "architecture": facts.architecture,
        "activation": facts.activation,
        "config": dict(facts.config),
    }
    if not facts.alone and (strays := [name for name in STATISTICS if (source.folder / name).exists()]):
        raise ArtefactError(f"several SAEs share the folder, and {strays[0]} does not say whose statistics it has")
    readable = isinstance(facts.reading, Encoder)
    return Sae(
        name=source.called(facts.name),
        layer=facts.place.layer,
        d_in=facts.d_in,
        d_sae=facts.d_sae,
        architecture=facts.architecture,
        model=facts.place.model,
        card=card,
        decoder=facts.decoder,
        format=format_key,
        activation=facts.activation,
        encoder=facts.reading if isinstance(facts.reading, Encoder) else None,
        why_not_read=None if readable else str(facts.reading),
        max_acts=max_acts(source.folder, facts.d_sae),
        settings=facts.settings,
    )


def not_alone(activation: str) -> str:
    """Why the features of an SAE that keeps only the strongest cannot be read one by one."""
    return f"with {activation} a feature is active only if it is among the strongest, which depends on all features"


def refuse_factor(source: Source, title: str) -> None:
    """ArtefactError when the sidecar gives a factor to a format whose SAEs read the stream as it is."""
    if source.sidecar.norm_scaling_factor is not None:
        raise ArtefactError(f"{SIDECAR} gives norm_scaling_factor, but {title} SAEs read the stream as it is")


def check_tensor(file: TensorFile, name: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there and hold floating-point numbers."""
    if name not in file.shapes:
        raise ArtefactError(f"{file.path.name} has no tensor {name}; it has {names(file)}")
    if not file.is_float(name):
        raise ArtefactError(f"{name} must hold floating-point numbers, not {file.dtypes[name]}")
    return file.shapes[name]


def vector(file: TensorFile, name: str, length: int | None = None, *, scalar: bool = False) -> Float32:
    """A tensor of one dimension, [length] float32, finite; with `scalar` one number is taken `length` times.

    length None: whatever its length is. ArtefactError says what is wrong with it.
    """
    shape = check_tensor(file, name)
    single = scalar and length is not None and shape in ((), (1,))
    if not single and (len(shape) != 1 or shape[0] == 0 or (length is not None and shape[0] != length)):
        raise ArtefactError(f"{name} is {list(shape)}, but must be [{'n' if length is None else length}]")
    values = file.whole(name)
    if not np.isfinite(values).all():
        raise ArtefactError(f"{name} holds NaN or infinite numbers")
    return np.full(length or 1, values.item(), dtype=np.float32) if single else values


def rows(
    file: TensorFile,
    name: str,
    d_sae: int,
    d_in: int,
    *,
    axis: int,
    divisor: float = 1.0,
) -> Rows:
    """The matrix `name`, a row of d_in a feature, whose dimension `axis` counts features in this format.

    Shapes decide: ArtefactError when it fits only transposed, or not at all; where both sizes are equal the format's
    own orientation holds.
    """
    shape, wanted = check_tensor(file, name), (d_in, d_sae) if axis else (d_sae, d_in)
    if shape == wanted:
        return Rows(file, name, axis=axis, divisor=divisor)
    sizes = f"{name} is {list(shape)}, but d_sae is {d_sae} and d_in {d_in}"
    if shape != wanted[::-1]:
        raise ArtefactError(f"{sizes}: the matrix must be {list(wanted)}")
    raise ArtefactError(f"{sizes}: the matrix is transposed, this format has it as {list(wanted)}")


def jumprelu(file: TensorFile, name: str, d_sae: int) -> Float32:
    """Thresholds [d_sae] of a JumpReLU that multiplies a relu: below zero they let nothing through."""
    return np.maximum(vector(file, name, d_sae, scalar=True), 0)


def max_acts(folder: Path, d_sae: int, files: Sequence[str] = STATISTICS) -> Float32 | None:
    """The largest activation of each feature, [d_sae]: `max_act` in the first of the files that has one."""
    for name in files:
        if not (folder / name).exists():
            continue
        file = SafetensorsFile(folder / name)
        if "max_act" not in file.shapes:
            continue
        if file.shapes["max_act"] != (d_sae,):
            raise ArtefactError(f"{name}: max_act is {list(file.shapes['max_act'])}, but there are {d_sae} features")
        found = file.whole("max_act")
        if not (np.isfinite(found).all() and (found >= 0).all()):
            raise ArtefactError(f"{name}: max_act must be finite and not negative")
        return found
    return None


def folder_or_file(path: Path, weights: str, up: int = 1) -> Sequence[tuple[Path, Path]]:
    """The SAE whose weights file has the fixed name `weights` under its folder, from that folder or that file."""
    folder = path if path.is_dir() else path.parents[up - 1] if len(path.parents) >= up else path.parent
    file = folder / weights
    return [(folder, file)] if file.is_file() and path in (folder, file) else []
