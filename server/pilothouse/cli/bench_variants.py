"""The rows of the table: which server each of them asks, and what its requests carry beside the prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pilothouse.cli.bench_artefacts import GATE, N_DISTINCT, N_PROBES, PROBES, SAE, VECTORS
from pilothouse.cli.bench_load import Load

Place = Literal["plain", "ours", "bare"]
"""vLLM's own server; ours as it starts by default; ours with nothing but `add` compiled in."""

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row. steering: the entries of every request, less the vector or the feature, which differ from one request
    to the next; probes: those that every request is watched by."""

    name: str
    server: Place
    steering: tuple[Entry, ...] = ()
    probes: tuple[str, ...] = ()


ADD = {"strength": 1.0}
SET = {"op": "set", "strength": 1.0, "preserve_norm": True}
CAP = {"op": "cap", "min": -1.0, "max": 1.0}
CHAIN = ({"op": "ablate"}, {"op": "set", "strength": 1.0}, CAP, {**ADD, "preserve_norm": True})
CLAMP = {"sae": SAE, "op": "clamp", "strength": 1.0, "unit": "raw"}
TOKEN_GATE = {"probe": GATE, "when": "above", "threshold": 0.5, "scope": "token"}
REST_GATE = {**TOKEN_GATE, "scope": "rest"}

PLAIN = Variant("plain vLLM", "plain")
IDLE = Variant("idle", "ours")
STEERED = Variant("all steered, distinct vectors", "ours", (ADD,))
BARE_IDLE = Variant("idle, --chain-steps 0", "bare")
BARE_STEERED = Variant("all steered, --chain-steps 0", "bare", (ADD,))

VARIANTS = (
    PLAIN,
    Variant("plain vLLM again (A/A)", "plain"),
    IDLE,
    BARE_IDLE,
    STEERED,
    BARE_STEERED,
    Variant(f"{N_PROBES} probes", "ours", probes=PROBES),
    Variant(f"steered and {N_PROBES} probes", "ours", (ADD,), PROBES),
    Variant("all ablate, distinct vectors", "ours", ({"op": "ablate"},)),
    Variant("all set, preserve_norm", "ours", (SET,)),
    Variant(f"all a chain of {len(CHAIN)} edits", "ours", CHAIN),
    Variant("all clamp, distinct SAE features", "ours", (CLAMP,)),
    Variant("all behind a token gate", "ours", ({**ADD, "gate": TOKEN_GATE},)),
    Variant("all behind a rest gate", "ours", ({**ADD, "gate": REST_GATE},)),
)

CHAIN_COSTS = ((IDLE, BARE_IDLE), (STEERED, BARE_STEERED))
"""The same load with the edits that depend on the stream compiled in, and without."""


def body_of(variant: Variant, load: Load, number: int) -> dict[str, Any]:
    """The request number `number` of a burst."""
    return load.body(number) | fields_of(variant, number)


def fields_of(variant: Variant, number: int) -> dict[str, Any]:
    """What a request carries beside OpenAI's fields; nothing for a server that knows no others."""
    if variant.server == "plain":
        return {}
    fields: dict[str, Any] = {"probes": list(variant.probes)}
    if variant.steering:
        # The steps of a chain have a vector each too.
        fields["steering"] = [{**entry, **_source(entry, number + i)} for i, entry in enumerate(variant.steering)]
    return fields


def _source(entry: Entry, number: int) -> dict[str, Any]:
    distinct = number % N_DISTINCT
    return {"feature": distinct} if "sae" in entry else {"vector": VECTORS[distinct]}
