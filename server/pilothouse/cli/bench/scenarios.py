"""What a run measures: scenarios, each with its servers and its pairs of variants.

A scenario is a model under one load. Its comparisons are pairs of variants; every comparison is measured as often as it
says, each time by two bursts of the same round (`bench.rounds`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pilothouse.cli.bench.artefacts import N_PROBES
from pilothouse.cli.bench.shapes import HARBOR, LLAMA_8B, QWEN_4B, SMALL, Model
from pilothouse.cli.bench.variants import (
    AGAIN,
    AGAIN_STREAMED,
    BARE_IDLE,
    BARE_STEERED,
    IDLE,
    MANY_STEERED,
    MORE,
    ONE_VECTOR,
    PLAIN,
    PLAIN_STREAMED,
    STEERED,
    STEERED_PROBED,
    WIDE_STREAMED,
    Place,
    Variant,
)
from pilothouse.cli.harbor import harbor_arguments
from pilothouse.core.errors import BadRequest

LEAST_PAIRS = 8
"""Pairs that a figure must have to be quoted."""
N_MANY = 1000
WIDE_SUFFIX = ", 64 probes"
"""What the name of a scenario ends with whose server for 64 probes has a GPU to share with plain vLLM alone."""
_LEAST_SEQUENCES, _LEAST_PLANS = 64, 64
_N_SINGLES = 40
_LATENCY_SHARE = 4
_LEAST_LATENCY_PAIRS = 3


@dataclass(frozen=True)
class Comparison:
    """A variant beside another. pairs: how often; latency: it is there for its latencies, not for its throughput."""

    variant: Variant
    beside: Variant
    pairs: int
    latency: bool = False

    @property
    def name(self) -> str:
        """Its name in reports, which says what stands beside it unless that is plain vLLM."""
        plain = self.beside in (PLAIN, PLAIN_STREAMED)
        return self.variant.name if plain else f"{self.variant.name} / {self.beside.name}"


@dataclass(frozen=True)
class Scenario:
    """A model under one load. seconds: how long its bursts may take together, for which the answers are made shorter
    where need be, None for as long as they take; singles: rounds of single requests, for their latency; in_turn: those
    of them whose median is one measurement; prompts: rounds of prompt scores; peers: whether other implementations are
    measured beside."""

    name: str
    model: Model
    batch: int
    tokens_in: int
    tokens_out: int
    comparisons: tuple[Comparison, ...]
    seconds: float | None = None
    singles: int = 0
    in_turn: int = 12
    prompts: int = 0
    peers: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """The servers that it needs, plain vLLM's first."""
        found = {side.server for c in self.comparisons for side in (c.variant, c.beside)}
        order: tuple[Place, ...] = ("plain", "ours", "wide", "bare", "many", "sites-1", "sites-half")
        return tuple(place for place in order if place in found)

    @property
    def needs_sae(self) -> bool:
        return any("sae" in entry for c in self.comparisons for entry in c.variant.steering)

    def n_vectors(self, place: Place) -> int:
        """Registered vectors of a server: one for each request of a burst, or many."""
        return N_MANY if place == "many" else self.batch

    def layers(self, place: Place) -> range:
        """Layers that have a site on one of our servers."""
        depth = self.model.depth
        return range({"sites-1": 1, "sites-half": depth // 2}.get(place, depth))

    def engine_flags(self, device: str) -> list[str]:
        """vLLM's flags, alike for all of the scenario's servers."""
        flags = ["--max-num-seqs", str(max(_LEAST_SEQUENCES, self.batch))]
        flags += [
            "--kv-cache-memory-bytes",
            str(self.model.cache_bytes(self.batch * (self.tokens_in + self.tokens_out))),
        ]
        if device == "cuda":
            # A bound for all that are resident; what they take is bounded by the size of the cache.
            flags += ["--gpu-memory-utilization", f"{0.9 / len(self.places):.2f}"]
        if not self.model.random:
            return harbor_arguments(flags)
        named = ["--served-model-name", self.model.key, "--max-model-len", str(self.model.max_len)]
        return [*named, "--dtype", self.model.dtype, "--load-format", "dummy", *flags]

    def our_flags(self, place: Place) -> list[str]:
        """Ours, beside those of the artefacts."""
        # The reference of the self-test reads weights from files.
        flags = ["--no-self-test"] if self.model.random else []
        if self.batch > _LEAST_PLANS:
            flags += ["--max-plans", str(self.batch)]
        if place == "wide":
            flags += ["--max-probes", str(N_PROBES)]
        if place == "bare":
            flags += ["--chain-steps", "0"]
        if place in ("sites-1", "sites-half"):
            flags += ["--sites", ",".join(map(str, self.layers(place)))]
        return flags


def default_comparisons(pairs: int, latency: bool = True) -> tuple[Comparison, ...]:
    """The columns of the table, with their controls; latency: latencies of those whose throughput is not of streams."""
    found = [Comparison(variant, PLAIN, pairs) for variant in (AGAIN, IDLE, STEERED, STEERED_PROBED)]
    found.append(Comparison(WIDE_STREAMED, PLAIN_STREAMED, pairs))
    if latency:
        fewer = min(pairs, max(_LEAST_LATENCY_PAIRS, pairs // _LATENCY_SHARE))
        streamed = [replace(v, name=f"{v.name}, streamed", streamed=True) for v in (IDLE, STEERED, STEERED_PROBED)]
        found += [Comparison(variant, PLAIN_STREAMED, fewer, latency=True) for variant in (AGAIN_STREAMED, *streamed)]
    return tuple(found)


def _two_servers_each(all_of: Sequence[Comparison]) -> list[tuple[str, int, tuple[Comparison, ...]]]:
    """The comparisons by the server of ours that they ask, since a GPU has room for two: name, singles, comparisons."""
    wide = tuple(c for c in all_of if c.variant.server == "wide")
    rest = tuple(c for c in all_of if c.variant.server != "wide")
    return [("", _N_SINGLES, rest), (WIDE_SUFFIX, 0, wide)]


def on_one_server(all_of: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons with all variants of ours asked of the server that has room for 64 probes."""
    return tuple(
        replace(c, variant=replace(c.variant, server="wide")) if c.variant.server == "ours" else c for c in all_of
    )


def _seconds(model: Model) -> float:
    """What the bursts of a scenario of `--full` may take: little with the small model, whose scenarios are many."""
    return 900.0 if model.random else 180.0


def default_scenarios(device: str, small_dtype: str, full: bool = False) -> list[Scenario]:
    """Those of `pilothouse bench`; on a CPU they take at most half an hour, unless they are part of `--full`."""
    if device == "cuda":
        return [
            Scenario(f"{model.key}, batch {batch}{name}", model, batch, 128, 256, comparisons, singles=singles)
            for model in (LLAMA_8B, QWEN_4B)
            for batch in (1, 32, 256)
            for name, singles, comparisons in _two_servers_each(default_comparisons(LEAST_PAIRS))
        ]
    harbor = Scenario(
        "harbor, batch 16",
        HARBOR,
        16,
        128,
        256,
        default_comparisons(10),
        240.0,
        singles=_N_SINGLES,
        prompts=10,
        peers=True,
    )
    return [harbor, _small_scenario(small_dtype, full)]


def _small_scenario(dtype: str, full: bool) -> Scenario:
    """The 0.5B shape on a CPU, where a start takes minutes and a burst ten seconds: unless `full`, with one server of
    ours for all columns, and with nothing but these."""
    comparisons = default_comparisons(LEAST_PAIRS, latency=full)
    return Scenario(
        "qwen3-0.5b, batch 16",
        replace(SMALL, dtype=dtype),
        16,
        128,
        256,
        comparisons if full else on_one_server(comparisons),
        1800.0 if full else 720.0,
        singles=5,
        in_turn=3,
        peers=full,
    )


def full_scenarios(device: str, small_dtype: str) -> list[Scenario]:
    """What `--full` adds."""
    if device == "cuda":
        # Room for two servers, but for more of the smaller model.
        found = [batch_scenario(model, 8, False) for model in (LLAMA_8B, QWEN_4B)]
        found += [long_scenario(model, False) for model in (LLAMA_8B, QWEN_4B)]
        return [*found, layers_scenario(QWEN_4B), *edits_scenarios(QWEN_4B)]
    small = replace(SMALL, dtype=small_dtype)
    found = [batch_scenario(HARBOR, batch, batch <= 32) for batch in (1, 8, 32, 256)]
    # The caches of two servers for 256 requests to the larger model do not fit a common machine's memory.
    found += [batch_scenario(small, batch, True) for batch in (1, 8, 32)]
    found.append(plans_scenario(HARBOR))
    for model in (HARBOR, small):
        found += [long_scenario(model, True), layers_scenario(model)]
    return [*found, *edits_scenarios(HARBOR)]


def batch_scenario(model: Model, batch: int, wide: bool) -> Scenario:
    """Another batch: the columns of the table, and up to 32 requests as many plans beside one. wide: 64 probes too."""
    found = [c for c in default_comparisons(LEAST_PAIRS, latency=False) if wide or c.variant is not WIDE_STREAMED]
    if 1 < batch <= 32:
        found.append(Comparison(STEERED, ONE_VECTOR, LEAST_PAIRS))
    tokens = 256 if batch <= 32 else 64
    return Scenario(f"{model.key}, batch {batch}", model, batch, 128, tokens, tuple(found), _seconds(model))


def plans_scenario(model: Model) -> Scenario:
    """As many plans as 256 requests beside one; short prompts, since it is in decoding steps that all of them meet."""
    found = (Comparison(AGAIN, PLAIN, LEAST_PAIRS), Comparison(STEERED, ONE_VECTOR, LEAST_PAIRS))
    return Scenario(f"{model.key}, 256 plans", model, 256, 32, 64, found, _seconds(model))


def long_scenario(model: Model, wide: bool) -> Scenario:
    """Long prompts and short answers."""
    tokens_in = min(1024, model.max_len - 64)
    found = [c for c in default_comparisons(LEAST_PAIRS, latency=False) if wide or c.variant is not WIDE_STREAMED]
    return Scenario(f"{model.key}, {tokens_in} tokens in", model, 16, tokens_in, 32, tuple(found), _seconds(model))


def layers_scenario(model: Model) -> Scenario:
    """Sites at one layer, at half of them, at all."""
    counts: tuple[tuple[Place, int], ...] = (("sites-1", 1), ("sites-half", model.depth // 2), ("ours", model.depth))
    found = [
        Comparison(
            replace(STEERED, name=f"{STEERED.name} at {n} of {model.depth} layers", server=place), PLAIN, LEAST_PAIRS
        )
        for place, n in counts
    ]
    found.append(Comparison(AGAIN, PLAIN, LEAST_PAIRS))
    return Scenario(f"{model.key}, layers", model, 16, 128, 256, tuple(found), _seconds(model))


def edits_scenarios(model: Model) -> list[Scenario]:
    """Every kind of edit and of reading, what chains cost those who do not use them, and many registered vectors."""
    edits = [Comparison(variant, PLAIN, LEAST_PAIRS) for variant in (AGAIN, *MORE)]
    edits += [Comparison(IDLE, BARE_IDLE, LEAST_PAIRS), Comparison(STEERED, BARE_STEERED, LEAST_PAIRS)]
    many = (Comparison(AGAIN, PLAIN, LEAST_PAIRS), Comparison(MANY_STEERED, STEERED, LEAST_PAIRS))
    return [
        Scenario(f"{model.key}, edits", model, 16, 128, 256, tuple(edits)),
        Scenario(f"{model.key}, 1,000 vectors", model, 16, 128, 256, many, _seconds(model)),
    ]


def named(scenarios: Sequence[Scenario], names: str) -> list[Scenario]:
    """Those with these names, joined by commas. Names have commas themselves: the longest that fits is meant."""
    known = sorted((scenario.name for scenario in scenarios), key=len, reverse=True)
    wanted: set[str] = set()
    rest = names.strip()
    while rest or not wanted:
        name = next((n for n in known if rest == n or rest.startswith(f"{n},")), None)
        if name is None:
            all_of = "; ".join(scenario.name for scenario in scenarios)
            raise BadRequest(f"no scenario is called {rest!r}; those that there are here: {all_of}", "--only")
        wanted.add(name)
        rest = rest.removeprefix(name).removeprefix(",").strip()
    return [scenario for scenario in scenarios if scenario.name in wanted]


def chosen(
    scenarios: Sequence[Scenario], models: str | None, pairs: int | None, tokens_out: int | None
) -> list[Scenario]:
    """The scenarios of these models, joined by commas, with this many pairs and tokens instead of their own."""
    known = {scenario.model.key for scenario in scenarios}
    wanted = known if models is None else set(models.split(","))
    if unknown := sorted(wanted - known):
        names = ", ".join(sorted(known))
        raise BadRequest(f"no scenario measures {unknown[0]!r}; models that are measured here: {names}", "--models")
    found = [scenario for scenario in scenarios if scenario.model.key in wanted]
    if pairs is not None:
        found = [
            replace(
                scenario,
                comparisons=tuple(replace(c, pairs=pairs) for c in scenario.comparisons),
                singles=min(scenario.singles, pairs),
                prompts=min(scenario.prompts, pairs),
            )
            for scenario in found
        ]
    if tokens_out is not None:
        found = [replace(scenario, tokens_out=tokens_out, seconds=None) for scenario in found]
    return found
