"""What a scenario's servers are asked in its rounds, and how long that may take."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pilothouse.cli.bench.client import Burst, measured, send
from pilothouse.cli.bench.journal import Journal
from pilothouse.cli.bench.rounds import Room, bursts_of, endless, measure_rounds, variants_of
from pilothouse.cli.bench.scenarios import Comparison, Scenario, on_one_server
from pilothouse.cli.bench.servers import Server, alone
from pilothouse.cli.bench.variants import ADD, PLAIN, PLAIN_STREAMED, Place, Requests, Variant

Servers = Mapping[Place, Server]
PAIR, SINGLE, FITTED, PROMPT, PEER = "pair", "single", "fitted", "prompt", "peer"

LENGTHS = (256, 192, 128, 96, 64, 48, 32)
"""Tokens that answers are made of where the scenario's own would take too long."""
WARM_UP_TOKENS = (4, 36)
PEERS_SECONDS = 60.0

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

    async def seconds_of(variant: Variant, tokens: int, turn: str) -> float:
        salt = f"{seed}/{scenario.name}/{variant.name}/{turn}/{tokens}"
        bodies = requests.bodies(variant, scenario.batch, scenario.tokens_in, tokens, salt)
        with alone(servers, variant.server) as server:
            seconds, answers = await send(server.port, bodies)
        measured(seconds, answers, variant.streamed)
        return seconds

    few, many = WARM_UP_TOKENS
    variants = variants_of(scenario.comparisons)
    # The first burst of a kind compiles and allocates.
    for variant in variants:
        await seconds_of(variant, few, "cold")
    plain = next(variant for variant in variants if variant.server == "plain")
    of_few, of_many = [await seconds_of(plain, tokens, "warm") for tokens in WARM_UP_TOKENS]
    step = max((of_many - of_few) / (many - few), 0.0)
    return max(of_few - few * step, 0.0), step


def fit_tokens(scenario: Scenario, prompt_seconds: float, step_seconds: float, seconds: float) -> int:
    """The longest answers, of at most the scenario's own length, with which all rounds fit into `seconds`; the shortest
    ones of LENGTHS where none do."""
    bursts = bursts_of(scenario.comparisons)
    lengths = [scenario.tokens_out, *(length for length in LENGTHS if length < scenario.tokens_out)]
    fits = (n for n in lengths if bursts * (prompt_seconds + n * step_seconds) <= seconds)
    return next(fits, lengths[-1])


async def measure_pairs(
    scenario: Scenario,
    servers: Servers,
    requests: Requests,
    tokens_out: int,
    journal: Journal,
    seed: int,
    room: Room = endless,
) -> None:
    """Measure the rounds of throughput that the journal has not got yet, as many as there is room for."""

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

    await measure_rounds(PAIR, scenario, scenario.comparisons, side, journal, seed, room)


async def measure_singles(
    scenario: Scenario, servers: Servers, requests: Requests, journal: Journal, seed: int
) -> None:
    """Measure the time to the first token of requests that come one after another: medians of some in turn."""

    async def side(variant: Variant, salt: str) -> dict[str, Any]:
        times = []
        with alone(servers, variant.server) as server:
            for turn in range(-1, scenario.in_turn):
                bodies = requests.bodies(variant, 1, scenario.tokens_in, 2, f"{salt}/{turn}")
                seconds, answers = await send(server.port, bodies)
                if turn >= 0:
                    times.append(measured(seconds, answers, variant.streamed).ttft_ms)
        return {"ttft_ms": statistics.median(time for time in times if time is not None)}

    await measure_rounds(SINGLE, scenario, singles_of(scenario), side, journal, seed)


def singles_of(scenario: Scenario) -> tuple[Comparison, ...]:
    """SINGLES as often as the scenario says, on the one server of ours that it has where it lacks the usual one."""
    found = tuple(replace(c, pairs=scenario.singles) for c in SINGLES)
    return found if "ours" in scenario.places else on_one_server(found)


def later_seconds(scenario: Scenario, prompt_seconds: float, step_seconds: float) -> float:
    """About how long a scenario's other measurements take after its rounds of throughput."""
    a_request = prompt_seconds / scenario.batch + 3 * step_seconds
    in_turn = bursts_of(singles_of(scenario)) * (1 + scenario.in_turn) * a_request
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
