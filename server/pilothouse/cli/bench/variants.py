"""What is measured: which server a request asks, and what it carries beside the prompt."""

import base64
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pilothouse.cli.bench.artefacts import GATE, N_PROBES, SAE, probe_name, vector_name
from pilothouse.cli.bench.shapes import PROMPT_IDS

Place = Literal["plain", "ours", "wide", "bare", "many", "sites-1", "sites-half"]
"""vLLM's own server; ours as it starts by default; ours with room for 64 probes; with nothing but `add` compiled in;
with 1,000 vectors registered; with a site at one layer; at half of the layers."""

Source = Literal["distinct", "one", "inline"]
"""Where vectors come from: a registered one that differs from one request of a burst to the next, the same registered
one for all, or a new one that each request brings."""

Entry = Mapping[str, Any]
N_INLINE_LAYERS = 8
N_THREE = 3


@dataclass(frozen=True)
class Variant:
    """One kind of request. steering: its entries, less the vector or the feature, which `source` chooses; n_probes:
    those that it is watched by; token_scores: it asks for every token's scores; streamed: so is its answer."""

    name: str
    server: Place = "ours"
    steering: tuple[Entry, ...] = ()
    source: Source = "distinct"
    n_probes: int = 0
    token_scores: bool = False
    streamed: bool = False


ADD = {"strength": 1.0}
SET = {"op": "set", "strength": 1.0, "preserve_norm": True}
CAP = {"op": "cap", "min": -1.0, "max": 1.0}
CHAIN = ({"op": "ablate"}, {"op": "set", "strength": 1.0}, CAP, {**ADD, "preserve_norm": True})
CLAMP = {"sae": SAE, "op": "clamp", "strength": 1.0, "unit": "raw"}
TOKEN_GATE = {"probe": GATE, "when": "above", "threshold": 0.5, "scope": "token"}
REST_GATE = {**TOKEN_GATE, "scope": "rest"}

PLAIN = Variant("plain vLLM", "plain")
PLAIN_STREAMED = Variant("plain vLLM, streamed", "plain", streamed=True)
AGAIN = Variant("plain vLLM again (A/A)", "plain")
AGAIN_STREAMED = Variant("plain vLLM again (A/A), streamed", "plain", streamed=True)
IDLE = Variant("idle")
STEERED = Variant("all steered, all distinct", "ours", (ADD,))
STEERED_PROBED = Variant("steered + 8 probes", "ours", (ADD,), n_probes=8)
WIDE_STREAMED = Variant(
    "steered + 64 probes, streamed", "wide", (ADD,), n_probes=N_PROBES, token_scores=True, streamed=True
)
ONE_VECTOR = Variant("all steered by one vector", "ours", (ADD,), "one")
BARE_IDLE = Variant("idle, --chain-steps 0", "bare")
BARE_STEERED = Variant("all steered, --chain-steps 0", "bare", (ADD,))
MANY_STEERED = Variant("all steered, 1,000 vectors registered", "many", (ADD,))

DEFAULTS = (IDLE, STEERED, STEERED_PROBED, WIDE_STREAMED)
"""The columns of the table of targets."""

MORE = (
    ONE_VECTOR,
    Variant("three vectors, all layers", "ours", (ADD,) * N_THREE),
    Variant("inline vectors, new each request", "ours", (ADD,), "inline"),
    Variant("1 probe", "ours", n_probes=1),
    Variant("8 probes", "ours", n_probes=8),
    Variant("64 probes", "wide", n_probes=N_PROBES),
    BARE_IDLE,
    BARE_STEERED,
    Variant("all ablate", "ours", ({"op": "ablate"},)),
    Variant("all set, preserve_norm", "ours", (SET,)),
    Variant(f"all a chain of {len(CHAIN)} edits", "ours", CHAIN),
    Variant("all clamp SAE features", "ours", (CLAMP,)),
    Variant("all behind a token gate", "ours", ({**ADD, "gate": TOKEN_GATE},)),
    Variant("all behind a rest gate", "ours", ({**ADD, "gate": REST_GATE},)),
)


@dataclass(frozen=True)
class Requests:
    """What the requests to one model have in common. n_distinct: registered vectors that they go through; n_layers:
    those of its blocks that have a site; width: of its stream."""

    model: str
    width: int
    n_layers: int
    n_distinct: int

    def bodies(self, variant: Variant, batch: int, tokens_in: int, tokens_out: int, seed: str) -> list[bytes]:
        """A burst's completion requests as JSON; another seed makes prompts that the prefix cache has not seen."""
        rng = random.Random(seed)
        noise = np.random.default_rng(rng.randrange(1 << 32))
        found = []
        for number in range(batch):
            body = {
                "model": self.model,
                "prompt": rng.choices(PROMPT_IDS, k=tokens_in),
                "max_tokens": tokens_out,
                "temperature": 0,
                "ignore_eos": True,
                **({"stream": True, "stream_options": {"include_usage": True}} if variant.streamed else {}),
                **self.fields(variant, number, noise),
            }
            found.append(json.dumps(body).encode())
        return found

    def fields(self, variant: Variant, number: int, noise: np.random.Generator) -> dict[str, Any]:
        """What request `number` of a burst carries beside OpenAI's fields; nothing where it asks for nothing."""
        fields: dict[str, Any] = {}
        if variant.n_probes:
            names = [probe_name(i) for i in range(variant.n_probes)]
            fields["probes"] = {"names": names, "tokens": True} if variant.token_scores else names
        if variant.steering:
            # The steps of a chain have a vector each too.
            first = 0 if variant.source == "one" else number
            fields["steering"] = [
                {**entry, **self._direction(entry, variant.source, first + i, noise)}
                for i, entry in enumerate(variant.steering)
            ]
        return fields

    def _direction(self, entry: Entry, source: Source, number: int, noise: np.random.Generator) -> dict[str, Any]:
        if source == "inline":
            layers = range(min(N_INLINE_LAYERS, self.n_layers))
            return {"inline": {"layers": {str(layer): _inline(self.width, noise) for layer in layers}}}
        distinct = number % self.n_distinct
        return {"feature": distinct} if "sae" in entry else {"vector": vector_name(distinct)}


def _inline(width: int, noise: np.random.Generator) -> str:
    row = (0.01 * noise.standard_normal(width, np.float32)).astype("<f4")
    return base64.b64encode(row.tobytes()).decode("ascii")
