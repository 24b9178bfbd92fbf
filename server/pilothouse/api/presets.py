"""What the server's own files name: combinations of steering and probes, and SAE features to be watched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pilothouse.api.names import PROBES, STEERING
from pilothouse.core.artefact import Name, first_problem, parse_json, read_artefact
from pilothouse.core.errors import ArtefactError, StartupError

SEPARATOR = ":"

_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Preset(BaseModel):
    """The extra fields of a request under a name; what they may hold is for the planner to say."""

    model_config = _CONFIG

    steering: list[Any] | None = None
    probes: list[Any] | dict[str, Any] | None = None
    description: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """Those that the preset sets."""
        found = {STEERING: self.steering, PROBES: self.probes}
        return {name: value for name, value in found.items() if value is not None}


class Monitor(BaseModel):
    """An SAE feature that is watched like a probe; flag_above: activation, in the feature's largest where known."""

    model_config = _CONFIG

    sae: str
    feature: Annotated[int, Field(ge=0)]
    flag_above: Annotated[float, Field(ge=0)] = 0.0


_PRESETS = TypeAdapter(dict[Name, Preset])
_MONITORS = TypeAdapter(dict[Name, Monitor])


def load_presets(path: str | None) -> dict[str, Preset]:
    """Presets by name from a JSON file ``{NAME: {"steering": [...], "probes": [...]}}``; StartupError for a bad one."""
    return _load(path, _PRESETS) if path is not None else {}


def load_monitors(path: str | None) -> dict[str, Monitor]:
    """Monitors by name from a JSON file ``{NAME: {"sae": NAME, "feature": INT}}``; StartupError for a bad one."""
    return _load(path, _MONITORS) if path is not None else {}


def _load(path: str, adapter: TypeAdapter[Any]) -> dict[str, Any]:
    try:
        return dict(adapter.validate_python(parse_json(read_artefact(Path(path)))))
    except ValidationError as error:
        raise StartupError(f"{path}: {first_problem(error)}") from None
    except (ArtefactError, OSError) as error:
        raise StartupError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Presets:
    """Presets of the served models, chosen by a model's name: ``<model>:<preset>``."""

    by_name: Mapping[str, Preset] = field(default_factory=dict)

    def resolve(self, model_name: str, fields: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The model's own name, and the request's fields with those of the preset where it has none of its own."""
        base, _, name = model_name.rpartition(SEPARATOR)
        if not base or name not in self.by_name:
            return model_name, dict(fields)
        return base, {**self.by_name[name].fields, **fields}

    def model_names(self, model: str) -> list[str]:
        """What `model` is called with each preset."""
        return [f"{model}{SEPARATOR}{name}" for name in self.by_name]
