"""The two request fields as strict models: wrong types, unknown keys and impossible values become one clear 400.

Nothing here knows which vectors, probes or layers exist; `plans` does.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from pilothouse.api.names import PROBES, STEERING, printable, quote
from pilothouse.core.config import EngineLayout
from pilothouse.core.edits import OF_FEATURE, OPERATIONS, NamedPositions, Operation, PositionRange, Positions
from pilothouse.core.errors import BadRequest
from pilothouse.core.plans import END

Unit = Literal["raw", "max_act", "resid_norm"]
Index = Annotated[int, Field(ge=-END, le=END)]

_NAMED = "<named>"
_OTHER = "<other>"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class RangeField(_Strict):
    """`positions` as an explicit range: from inclusive, to exclusive, negative from the end of the prompt."""

    start: Index = Field(alias="from")
    stop: Index = Field(alias="to")


class InlineField(_Strict):
    """A direction sent with the request: base64 of little-endian float32 by layer."""

    layers: dict[str, str] = Field(min_length=1)


def _by_type(value: object) -> str:
    """Which arm of a name-or-structure union `value` is for, so that errors speak of that arm only."""
    return _NAMED if isinstance(value, str) else _OTHER


PositionsField = Annotated[
    Annotated[NamedPositions, Tag(_NAMED)] | Annotated[RangeField, Tag(_OTHER)], Discriminator(_by_type)
]
LayersField = Annotated[
    Annotated[Literal["all"], Tag(_NAMED)] | Annotated[list[int], Field(min_length=1), Tag(_OTHER)],
    Discriminator(_by_type),
]


class GateField(_Strict):
    """`gate`: the edit acts where the probe's score is on one side of the threshold."""

    probe: str
    when: Literal["above", "below"]
    threshold: float
    scope: Literal["token", "rest"] = "token"
    action: Literal["steer", "stop"] = "steer"


class EditField(_Strict):
    """One entry of `steering`."""

    vector: str | None = None
    sae: str | None = None
    feature: int | None = None
    inline: InlineField | None = None
    op: Operation = "add"
    strength: float = 1.0
    unit: Unit | None = None
    layers: LayersField | None = None
    positions: PositionsField = "all"
    preserve_norm: bool = False
    gate: GateField | None = None
    min: float | None = None
    max: float | None = None

    @property
    def span(self) -> Positions:
        """`positions` as the core knows them."""
        if isinstance(self.positions, RangeField):
            return PositionRange(self.positions.start, self.positions.stop)
        return self.positions


class FeatureField(_Strict):
    """A feature of an SAE as an entry of `probes`."""

    sae: str
    feature: int


ProbeEntry = Annotated[
    Annotated[str, Tag(_NAMED)] | Annotated[FeatureField, Tag(_OTHER)],
    Discriminator(_by_type),
]


class ProbesField(_Strict):
    """`probes`; `names` is None where the server's defaults are meant."""

    names: list[ProbeEntry] | None = None
    tokens: bool = False
    prompt: bool = False


_EDITS = TypeAdapter(list[EditField])
_NAMES = TypeAdapter(list[ProbeEntry], config=ConfigDict(strict=True))


def parse_steering(value: object, layout: EngineLayout) -> list[EditField]:
    """The entries of `steering`, or BadRequest for the first thing wrong with them, or not compiled in by `layout`."""
    try:
        edits = _EDITS.validate_python(value, strict=True)
    except ValidationError as error:
        raise _first_problem(error, STEERING) from None
    for i, edit in enumerate(edits):
        _check_edit(edit, f"{STEERING}[{i}]")
        _check_compiled(edit, layout, f"{STEERING}[{i}]")
    return edits


def parse_probes(value: object) -> ProbesField:
    """`probes` in either of its forms, or BadRequest for the first thing wrong with it."""
    try:
        if isinstance(value, list):
            field = ProbesField(names=_NAMES.validate_python(value))
        else:
            field = ProbesField.model_validate(value)
    except ValidationError as error:
        raise _first_problem(error, PROBES) from None
    if field.names is None and isinstance(value, Mapping) and "names" in value:
        raise BadRequest(
            "probes.names must be a list, not null; leave it out for the server's defaults", "probes.names"
        )
    return field


def _check_edit(edit: EditField, where: str) -> None:
    """What a type cannot say: one source, operations that are built, ranges that can hold something."""
    sources = [name for name in ("vector", "sae", "inline") if getattr(edit, name) is not None]
    if len(sources) != 1:
        found = " and ".join(sources) or "none of them"
        raise BadRequest(f"{where} must have exactly one of vector, sae and inline; it has {found}", where)
    if edit.sae is not None and edit.feature is None:
        raise BadRequest(f"{where}.feature is required with sae", f"{where}.feature")
    if edit.sae is None and edit.feature is not None:
        raise BadRequest(f"{where}.feature goes with sae only", f"{where}.feature")
    _check_operation(edit, where)
    if isinstance(edit.positions, RangeField):
        _check_range(edit.positions, f"{where}.positions")


def _check_operation(edit: EditField, where: str) -> None:
    if edit.op in OF_FEATURE and edit.sae is None:
        raise BadRequest(f"operation {edit.op} is for features of an SAE: give sae and feature", f"{where}.op")
    if edit.op == "ablate" and edit.unit is not None:
        raise BadRequest(
            f"{where}.unit does not go with op 'ablate', which takes all of the component", f"{where}.unit"
        )
    if edit.op != "cap":
        for key in ("min", "max"):
            if getattr(edit, key) is not None:
                raise BadRequest(f"{where}.{key} goes with op 'cap' only", f"{where}.{key}")
    elif edit.min is None and edit.max is None:
        raise BadRequest(f"{where} with op 'cap' needs min, max or both", where)
    elif edit.min is not None and edit.max is not None and edit.min > edit.max:
        raise BadRequest(f"{where}.min is greater than max", f"{where}.min")


def _check_compiled(edit: EditField, layout: EngineLayout, where: str) -> None:
    compiled = operations(layout)
    wants = {"op": f"operation {edit.op!r}" if edit.op not in compiled else ""}
    wants["preserve_norm"] = "preserve_norm" if edit.preserve_norm and not layout.chain_steps else ""
    wants["gate"] = "gates" if edit.gate is not None and not layout.chain_steps else ""
    for key, what in wants.items():
        if what:
            names = ", ".join(compiled)
            raise BadRequest(
                f"this server has not got {what} compiled in; it has the operations: {names}", f"{where}.{key}"
            )


def operations(layout: EngineLayout) -> tuple[Operation, ...]:
    """Operations of the contract that an engine of this layout has compiled in."""
    return OPERATIONS if layout.chain_steps else ("add",)


def _check_range(span: RangeField, where: str) -> None:
    """Refuse a range that is empty whatever the prompt's length; the others are settled once that is known."""
    same_end = (span.start < 0) == (span.stop < 0)
    if (same_end and span.stop <= span.start) or span.stop == 0:
        raise BadRequest(f"{where} from {span.start} to {span.stop} select nothing", where)


_MESSAGES = {
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "too_short": "must not be empty",
    "greater_than_equal": "is out of range",
    "less_than_equal": "is out of range",
    "missing": "is required",
    "extra_forbidden": "is not a field of this request",
}


# Where a name or a structure may stand, a complaint about the structure alone would mislead.
_EITHER = {
    "positions": "must be the name of a selector or an object with from and to",
    "layers": "must be null, 'all' or a list of layers",
    PROBES: "must be a list of names or an object with names, tokens and prompt",
    "entry": "must be the name of a probe or an object with sae and feature",
}


def _first_problem(error: ValidationError, field: str) -> BadRequest:
    """The first complaint of pydantic, in plain words and with the path as the client wrote it."""
    first = error.errors(include_url=False)[0]
    param = _path(field, first["loc"])
    if first["type"] == "literal_error":
        return BadRequest(f"{param} must be {first['ctx']['expected']}, not {quote(first['input'])}", param)
    said = _MESSAGES.get(first["type"], printable(first["msg"]))
    if first["type"] in ("model_type", "model_attributes_type", "list_type"):
        last = param.rpartition(".")[2]
        said = _EITHER.get("entry" if last.startswith((f"{PROBES}[", "names[")) else last, said)
    shown = "" if first["type"] in ("missing", "extra_forbidden") else f", not {quote(first['input'])}"
    return BadRequest(f"{param} {said}{shown}", param)


def _path(field: str, loc: tuple[int | str, ...]) -> str:
    path = field
    for step in loc:
        if step in (_NAMED, _OTHER):
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{printable(step)}"
    return path
