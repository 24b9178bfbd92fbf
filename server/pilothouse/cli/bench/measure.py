"""The pairs of a scenario: one burst of a variant and one of what it stands beside, right after one another.

Which of the two comes first is random, and so is the order of comparisons in a round, so that drift of the machine
cancels. Every burst has prompts that the prefix cache of its server has not seen.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rich.progress import track

from pilothouse.cli.bench.client import Burst, measured, send
from pilothouse.cli.bench.journal import Journal
from pilothouse.cli.bench.scenarios import Comparison, Scenario
from pilothouse.cli.bench.servers import Server, alone
from pilothouse.cli.bench.variants import ADD, PLAIN, PLAIN_STREAMED, Place, Requests, Variant

Servers = Mapping[Place, Server]
Side = Callable[[Variant, str], Awaitable[Mapping[str, Any]]]
"""Measures a variant once, with requests made from a seed."""

PAIR, SINGLE, FITTED, PROMPT, PEER = "pair", "single", "fitted", "prompt", "peer"
SIDES = ("variant", "beside")

LENGTHS = (256, 192, 128, 96, 64, 48, 32)
"""Tokens that answers are made of where the scenario's own would take too long."""
WARM_UP_TOKENS = (4, 20)
PEERS_SECONDS = 150.0
N_IN_TURN = 4
"""Single requests whose median is one measurement."""

SINGLES = (
    Comparison(Variant("plain vLLM again (A/A), one request", "plain", streamed=True), PLAIN_STREAMED, 0),
    Comparison(Variant("idle, one request", streamed=True), PLAIN_STREAMED, 0),
    Comparison(Variant("a registered vector, one request", "ours", (ADD,), streamed=True), PLAIN_STREAMED, 0),
    Comparison(
        Variant("a new inline vector of 8 layers (or all), one request", "ours", (ADD,), "inline", streamed=True),
        PLAIN_STREAMED,
        0,
    ),
)


async def warm_up(scenario: Scenario, servers: Servers, requests: Requests, seed: int) -> tuple[float, float]:
    """Send every variant a short burst; seconds that plain vLLM takes for the prompts, and for each further token."""
    found: dict[int, float] = {}
    sides = {side.name: side for c in scenario.comparisons for side in (c.variant, c.beside)}
    for variant in sides.values():
        for tokens in WARM_UP_TOKENS if variant.server == "plain" else WARM_UP_TOKENS[:1]:
            # The first one compiles and allocates; the second is timed.
            for turn in ("cold", "warm"):
                salt = f"{seed}/{scenario.name}/{variant.name}/{turn}/{tokens}"
                bodies = requests.bodies(variant, scenario.batch, scenario.tokens_in, tokens, salt)
                with alone(servers, variant.server) as server:
                    seconds, answers = await send(server.port, bodies)
                measured(seconds, answers, variant.streamed)
                if variant.server == "plain":
                    found[tokens] = seconds
    if not found:
        return 0.0, 0.0
    few, many = WARM_UP_TOKENS
    step = max((found[many] - found[few]) / (many - few), 0.0)
    return max(found[few] - few * step, 0.0), step


def fit_tokens(scenario: Scenario, prompt_seconds: float, step_seconds: float, seconds: float) -> int:
    """The longest answers, of at most the scenario's own length, whose bursts all fit into `seconds`."""
    bursts = sum(2 * comparison.pairs for comparison in scenario.comparisons)
    lengths = [scenario.tokens_out, *(length for length in LENGTHS if length < scenario.tokens_out)]
    fits = (n for n in lengths if bursts * (prompt_seconds + n * step_seconds) <= seconds)
    return next(fits, lengths[-1])


async def measure_pairs(
    scenario: Scenario, servers: Servers, requests: Requests, tokens_out: int, journal: Journal, seed: int
) -> None:
    """Measure the pairs of throughput that the journal has not got yet."""

    async def side(variant: Variant, salt: str) -> dict[str, Any]:
        bodies = requests.bodies(variant, scenario.batch, scenario.tokens_in, tokens_out, salt)
        with alone(servers, variant.server) as server:
            # A server that was stopped until now is awake once it has answered something.
            await send(server.port, requests.bodies(PLAIN, 1, 4, 1, f"{salt}/wake"))
            used = server.cpu_seconds()
            seconds, answers = await send(server.port, bodies)
            used = server.cpu_seconds() - used
        burst: Burst = measured(seconds, answers, variant.streamed, used)
        return burst.to_dict()

    await _pairs(PAIR, scenario, scenario.comparisons, side, journal, seed)


async def measure_singles(
    scenario: Scenario, servers: Servers, requests: Requests, journal: Journal, seed: int
) -> None:
    """Measure the time to the first token of requests that come one after another."""

    async def side(variant: Variant, salt: str) -> dict[str, Any]:
        times = []
        with alone(servers, variant.server) as server:
            for turn in range(-1, N_IN_TURN):
                bodies = requests.bodies(variant, 1, scenario.tokens_in, 2, f"{salt}/{turn}")
                seconds, answers = await send(server.port, bodies)
                if turn >= 0:
                    times.append(measured(seconds, answers, variant.streamed).ttft_ms)
        return {"ttft_ms": sorted(time for time in times if time is not None)[len(times) // 2]}

    comparisons = [Comparison(c.variant, c.beside, scenario.singles) for c in SINGLES]
    await _pairs(SINGLE, scenario, comparisons, side, journal, seed)


async def _pairs(
    kind: str, scenario: Scenario, comparisons: Sequence[Comparison], side: Side, journal: Journal, seed: int
) -> None:
    numbers = range(max((c.pairs for c in comparisons), default=0))
    for number in track(numbers, description=f"{scenario.name}, {kind}s", transient=True):
        order = random.Random(f"{seed}/{kind}/{scenario.name}/{number}")
        for comparison in order.sample(comparisons, len(comparisons)):
            first, second = order.sample(SIDES, 2)
            key = {"scenario": scenario.name, "kind": kind, "comparison": comparison.name, "number": number}
            if number >= comparison.pairs or journal.done(**key):
                continue
            salt = f"{seed}/{kind}/{scenario.name}/{comparison.name}/{number}"
            found: dict[str, Mapping[str, Any]] = {}
            for name in (first, second):
                variant: Variant = getattr(comparison, name)
                # The same prompts for both, unless one server gets both and would find the second's in its cache.
                again = name == second and comparison.variant.server == comparison.beside.server
                found[name] = await side(variant, f"{salt}/again" if again else salt)
            journal.add({**key, "latency": comparison.latency, "first": first, **{name: found[name] for name in SIDES}})


def later_seconds(scenario: Scenario, prompt_seconds: float, step_seconds: float) -> float:
    """About how long a scenario's other measurements take after its pairs."""
    a_request = prompt_seconds / scenario.batch + 3 * step_seconds
    in_turn = 2 * len(SINGLES) * scenario.singles * (1 + N_IN_TURN) * a_request
    return in_turn + (PEERS_SECONDS if scenario.peers else 0.0)


class Deadline:
    """When a run is to end. minutes: how long it may take from now, None for as long as it takes."""

    def __init__(self, minutes: float | None) -> None:
        self._until = None if minutes is None else time.monotonic() + 60 * minutes

    def left(self, wanted: float, kept: float) -> float:
        """Seconds out of `wanted` that there are, with `kept` seconds put aside for what comes later."""
        if self._until is None:
            return wanted
        return max(min(wanted, self._until - time.monotonic() - kept), 0.0)
