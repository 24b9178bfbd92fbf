"""Receipts: what was added, where, and how many tokens it reached."""

import base64
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import CALM_ROWS, HONEST_ROWS, SAE_DECODER
from api_support.client import HEADERS, Client
from api_support.client import N_PROMPT as P

from pilothouse.api.receipts import receipts
from pilothouse.core.directions import Direction, digest_rows
from pilothouse.core.edits import Edit
from pilothouse.core.gaps import find_gaps
from pilothouse.core.messages import Reading
from pilothouse.core.plans import END, Plan, Readout
from pilothouse.core.tracks import ChoiceTrack

N = 13
# positions -> the first and the end of the span, by the words of the contract
SPANS: list[tuple[Any, int, int]] = [
    ("all", 0, END),
    ("prompt", 0, P - 1),
    ("generation", P - 1, END),
    ("last_prompt", P - 1, P),
    ({"from": 2, "to": 5}, 2, 5),
    ({"from": 0, "to": 1000}, 0, 1000),
    ({"from": -3, "to": -1}, P - 3, P - 1),
    ({"from": -1, "to": P + 4}, P - 1, P + 4),
    ({"from": P + 3, "to": P + 5}, P + 3, P + 5),
    ({"from": -1000, "to": 2}, 0, 2),
    ({"from": P + N - 2, "to": P + N + 3}, P + N - 2, P + N + 3),
    ({"from": P + N, "to": P + N + 3}, P + N, P + N + 3),
]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("cached", [0, 4, P - 1])
@pytest.mark.parametrize(("positions", "start", "stop"), SPANS, ids=lambda v: str(v))
async def test_counts_of_every_selector(
    client: Client, positions: Any, start: int, stop: int, cached: int, ahead: bool
) -> None:
    choice = await client.choice(
        steering=[{"vector": "honest", "strength": 4, "positions": positions}],
        max_tokens=N,
        fake={"cached": cached, "ahead": ahead},
    )
    (receipt,) = choice["steering"]
    # The last generated token is never fed back: positions P .. P+N-2 follow the prompt.
    forwarded = range(cached, P + N - 1)
    assert receipt == {
        "vector": "honest",
        "digest": f"sha256:{digest_rows({int(k[6:]): v for k, v in HONEST_ROWS.items()}).hex()}",
        "op": "add",
        "layers": [2],
        "coefficients": {"2": 4.0},
        "positions": positions,
        "tokens_edited": sum(start <= p < stop for p in forwarded),
        "tokens_from_cache": sum(start <= p < stop for p in range(cached)),
    }
    assert "probes" not in choice


async def test_generation_edits_as_many_positions_as_there_are_tokens(client: Client) -> None:
    choice = await client.choice(steering=[{"vector": "calm", "positions": "generation"}], max_tokens=N)
    assert choice["steering"][0]["tokens_edited"] == N


async def test_receipts_name_their_source(client: Client) -> None:
    row = np.arange(8, dtype="<f4")
    inline = {"layers": {"1": base64.b64encode(row.tobytes()).decode()}}
    choice = await client.choice(
        steering=[
            {"vector": "calm"},
            {"sae": "features", "feature": 2, "strength": 2},
            {"inline": inline, "strength": -1},
        ]
    )
    vector, sae, own = choice["steering"]
    assert (vector["vector"], vector["layers"], vector["coefficients"]) == ("calm", [3], {"3": 1.0})
    assert vector["digest"] == f"sha256:{digest_rows({3: CALM_ROWS['layer.3']}).hex()}"
    assert (sae["sae"], sae["feature"], sae["coefficients"]) == ("features", 2, {"2": 10.0})
    assert sae["digest"] == f"sha256:{digest_rows({2: SAE_DECODER[2]}).hex()}"
    assert (own["inline"], own["coefficients"]) == (True, {"1": -1.0})
    assert own["digest"] == f"sha256:{digest_rows({1: row}).hex()}"
    assert not {"vector", "feature"} & set(own)
    assert all("error" not in receipt for receipt in choice["steering"])


async def test_an_empty_list_has_an_empty_receipt(client: Client) -> None:
    assert (await client.choice(steering=[]))["steering"] == []
    assert (await client.chunks(steering=[]))[-1]["steering"] == []


async def test_nothing_comes_from_the_cache_where_nothing_ran(client: Client) -> None:
    await client.events(steering=[{"vector": "calm"}], user="gone", fake={"abort": 1, "late": 9})
    record = (await client.http.get("/v1/probes/results/chatcmpl-gone", headers=HEADERS)).json()
    (receipt,) = record["choices"][0]["steering"]
    assert (receipt["tokens_edited"], receipt["tokens_from_cache"]) == (0, 0)


async def test_a_strength_of_zero_is_no_gap(client: Client) -> None:
    choice = await client.choice(steering=[{"vector": "calm", "strength": 0}])
    assert choice["steering"][0]["coefficients"] == {"3": 0.0}
    assert "error" not in choice["steering"][0]


async def test_every_prompt_has_its_own_spans(client: Client) -> None:
    response = await client.complete(
        prompt=["a", "abcdefg"], n=2, max_tokens=3, steering=[{"vector": "calm", "positions": "prompt"}]
    )
    counts = [choice["steering"][0]["tokens_edited"] for choice in response.json()["choices"]]
    assert counts == [1, 1, 7, 7]


def test_a_prompt_that_resumes_behind_what_another_request_cached_has_no_gap() -> None:
    track = ChoiceTrack(n_prompt=10, n_readouts=1, token_ids=[1, 2], finish_reason="length")
    scored = np.zeros((3, 1), dtype=np.float32).tobytes()
    # Three positions ran, then the request was put back; it resumed at 8, with the cache filled by someone else.
    track.add(Reading(runs=((0, 3, 3),)))
    track.add(Reading(runs=((8, 3, 3),), score_runs=((9, 2),), scores=scored[:8], cached=8))
    direction = Direction({0: np.ones(4, dtype=np.float32)})
    plan = Plan((Edit("v", direction, {0: 1.0}, "all"),), (Readout("p", direction),))
    spans = [(0, END)]
    assert find_gaps(plan, spans, track) == ()
    (receipt,) = receipts(plan, spans, track)
    assert (receipt["tokens_edited"], receipt["tokens_from_cache"]) == (6, 5)
    silent = ChoiceTrack(n_prompt=10, n_readouts=1, token_ids=[1, 2], finish_reason="length")
    silent.add(Reading(runs=((0, 3, 3),)))
    silent.add(Reading(runs=((8, 3, 3),), score_runs=((9, 2),), scores=scored[:8]))
    assert [gap.positions for gap in find_gaps(plan, spans, silent)] == [5]
