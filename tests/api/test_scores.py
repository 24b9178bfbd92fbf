"""What probes say in a response, against the contract computed slowly from the files' own numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_support.artefacts import EARLY, EARLY_ROWS, RISK, RISK_ROWS, TRUTH, TRUTH_ROWS, write_all
from api_support.client import HEADERS, N_PROMPT, PROMPT, Client, connect, strict_json
from api_support.fake_engine import BOS, COMPLETIONS, FakeServer, answer, decode, encode, stream_at
from api_support.reference import Stream, calibrated, logit, sigmoid, stats

from pilothouse.core.sites import Float32

PROBES: dict[str, tuple[dict[str, Any], dict[str, Float32]]] = {
    "truthfulness": (TRUTH, TRUTH_ROWS),
    "risk": (RISK, RISK_ROWS),
    "early": (EARLY, EARLY_ROWS),
}


def near(value: float) -> Any:
    """The server computes in float32, the reference in float64."""
    return pytest.approx(value, rel=1e-4, abs=1e-4)


def stream_of(sequence: int) -> Stream:
    return lambda position, layer: stream_at(sequence, position, layer)


def check_probe(name: str, shown: dict[str, Any], sequence: int, n_prompt: int, n_tokens: int) -> None:
    """One entry of `probes` against the reference."""
    card, tensors = PROBES[name]
    logits = [logit(tensors, stream_of(sequence), n_prompt + j) for j in range(n_tokens - 1)]
    prompt_end = logit(tensors, stream_of(sequence), n_prompt - 1)
    wanted = stats(card, logits, prompt_end)
    assert list(shown["stats"]) == [*(k for k in wanted if k != "prompt_end"), "prompt_end"]
    for key, value in wanted.items():
        assert shown["stats"][key] == (value if value is None else near(value)), key
    score = calibrated(card, wanted[card["aggregate"]])  # type: ignore[arg-type]
    assert shown["score"] == near(score)
    past = score > card["threshold"] if card["alarm"] == "high" else score < card["threshold"]
    assert shown["flagged"] is past
    for key in ("label", "alarm", "aggregate", "threshold"):
        assert shown[key] == card[key]
    assert shown["version"].startswith("sha256:")
    assert shown["n_scored"] == n_tokens - 1
    assert "reason" not in shown
    if "tokens" in shown:
        check_tokens(shown["tokens"], sequence, logits, n_tokens)


def check_tokens(entries: list[dict[str, Any]], sequence: int, logits: list[float], n_tokens: int) -> None:
    ids = answer(sequence, n_tokens)
    assert [e["token_id"] for e in entries] == ids
    assert [e["token"] for e in entries] == [decode(i) for i in ids]
    assert entries[-1] == {"token": decode(ids[-1]), "token_id": ids[-1], "logit": None, "score": None}
    for entry, wanted in zip(entries[:-1], logits, strict=True):
        assert entry["logit"] == near(wanted)
        assert entry["score"] == near(sigmoid(wanted))
        assert "reason" not in entry


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("n_tokens", [2, 7, 40])
async def test_every_number_is_the_contracts(client: Client, n_tokens: int, tokens: bool) -> None:
    choice = await client.choice(probes={"names": list(PROBES), "tokens": tokens}, max_tokens=n_tokens)
    assert list(choice["probes"]) == list(PROBES)
    for name, shown in choice["probes"].items():
        assert ("tokens" in shown) is tokens
        check_probe(name, shown, 0, N_PROMPT, n_tokens)
    assert "steering" not in choice


async def test_every_score_belongs_to_its_own_sequence(client: Client) -> None:
    prompts = ["ab", "a longer one", "c"]
    response = await client.http.post(
        COMPLETIONS, json={"prompt": prompts, "n": 2, "max_tokens": 5, "probes": {"names": ["risk"], "tokens": True}}
    )
    choices = strict_json(response.content)["choices"]
    assert [c["index"] for c in choices] == list(range(6))
    for choice in choices:
        n_prompt = len(encode(prompts[choice["index"] // 2]))
        check_probe("risk", choice["probes"]["risk"], choice["index"], n_prompt, 5)


@pytest.mark.parametrize(
    "fake",
    [
        {"ahead": True},
        {"late": 2},
        {"per_step": 4},
        {"cached": 9},
        {"ahead": True, "late": 9},
        {"preempted": [3, 7]},
        {"preempted": [2], "cached": 5, "late": 1},
    ],
)
async def test_how_the_engine_ran_changes_nothing(client: Client, fake: dict[str, Any]) -> None:
    body: dict[str, Any] = {"probes": {"names": list(PROBES), "tokens": True}, "max_tokens": 9}
    assert await client.choice(**body, fake=fake) == await client.choice(**body)


async def test_one_token_is_not_scored_but_the_prompts_end_is(client: Client) -> None:
    choice = await client.choice(probes={"names": ["truthfulness", "early"], "tokens": True}, max_tokens=1)
    shown = choice["probes"]["truthfulness"]
    prompt_end = logit(TRUTH_ROWS, stream_of(0), N_PROMPT - 1)
    assert shown["score"] is None
    assert shown["reason"] == "one_generated_token"
    assert shown["flagged"] is False
    assert shown["n_scored"] == 0
    assert shown["stats"].pop("prompt_end") == near(prompt_end)
    assert set(shown["stats"].values()) == {None}
    assert shown["tokens"] == [
        {"token": shown["tokens"][0]["token"], "token_id": answer(0, 1)[0], "logit": None, "score": None}
    ]
    # A probe that is read at the end of the prompt has its score all the same.
    assert choice["probes"]["early"]["score"] is not None


async def test_prompt_tokens(client: Client) -> None:
    choice = await client.choice(probes={"names": ["risk"], "prompt": True})
    entries = choice["probes"]["risk"]["prompt_tokens"]
    assert [e["token_id"] for e in entries] == encode(PROMPT)
    assert entries[0] == {"token": decode(BOS), "token_id": BOS, "logit": None, "score": None, "reason": "bos"}
    for p, entry in enumerate(entries[1:], 1):
        assert entry["logit"] == near(logit(RISK_ROWS, stream_of(0), p))
        assert entry["score"] == near(sigmoid(entry["logit"]))
    assert entries[-1]["logit"] == choice["probes"]["risk"]["stats"]["prompt_end"]
    assert "tokens" not in choice["probes"]["risk"]


async def test_prompt_tokens_from_the_cache_have_their_scores(client: Client) -> None:
    body = {"probes": {"names": ["risk"], "prompt": True}}
    cached = await client.choice(**body, fake={"cached": 4})
    assert cached == await client.choice(**body)
    reasons = [e.get("reason") for e in cached["probes"]["risk"]["prompt_tokens"]]
    assert reasons == ["bos", *[None] * (N_PROMPT - 1)]


async def test_prompt_tokens_of_an_aborted_request_that_did_not_run(client: Client) -> None:
    body = {"probes": {"names": ["risk"], "prompt": True}, "fake": {"abort": 1, "late": 9}}
    await client.events(**body, user="gone")
    record = strict_json((await client.http.get("/v1/probes/results/chatcmpl-gone", headers=HEADERS)).content)
    reasons = [e.get("reason") for e in record["choices"][0]["probes"]["risk"]["prompt_tokens"]]
    assert reasons == ["bos", *["not_forwarded"] * (N_PROMPT - 1)]


@pytest.mark.parametrize("bos", [None, BOS + 1])
async def test_a_prompt_without_bos_is_scored_from_its_first_token(tmp_path: Path, bos: int | None) -> None:
    async with connect(FakeServer(write_all(tmp_path), bos=bos)) as http:
        for cached in (0, 2):
            choice = await Client(http).choice(probes={"names": ["risk"], "prompt": True}, fake={"cached": cached})
            entries = choice["probes"]["risk"]["prompt_tokens"]
            assert [e.get("reason") for e in entries] == [None] * N_PROMPT


async def test_what_is_not_finite_is_null_with_a_reason_and_no_gap(client: Client) -> None:
    choice = await client.choice(
        probes={"names": ["risk"], "tokens": True, "prompt": True}, max_tokens=8, fake={"poisoned": [-2, 2, 4, 5]}
    )
    shown = choice["probes"]["risk"]
    assert [j for j, e in enumerate(shown["tokens"]) if e["logit"] is None] == [2, 4, 5, 7]
    assert [e.get("reason") for e in shown["tokens"] if e["logit"] is None] == ["not_finite"] * 3 + [None]
    assert [e.get("reason") for e in shown["prompt_tokens"]][-3:] == [None, "not_finite", None]
    assert shown["n_scored"] == 4
    left = [logit(RISK_ROWS, stream_of(0), N_PROMPT + j) for j in (0, 1, 3, 6)]
    assert shown["stats"]["mean"] == near(float(np.mean(left)))
    assert all(math.isfinite(v) for v in shown["stats"].values() if v is not None)
    assert shown["score"] is not None
    assert "reason" not in shown


@pytest.mark.parametrize("stream", [False, True])
async def test_a_choice_without_a_finite_score_says_so(client: Client, stream: bool) -> None:
    body: dict[str, Any] = {"probes": ["risk", "early"], "max_tokens": 3, "fake": {"poisoned": [-1, 0, 1, 2]}}
    choice = (await client.chunks(**body))[-1] if stream else await client.choice(**body)
    for shown in choice["probes"].values():
        assert (shown["score"], shown["reason"], shown["stats"]["prompt_end"]) == (None, "not_finite", None)
        assert (shown["flagged"], shown["n_scored"]) == (False, 0)


async def test_each_probe_says_why_it_has_no_score(client: Client) -> None:
    choice = await client.choice(probes=["risk", "early"], max_tokens=1, fake={"poisoned": [-1]})
    assert {name: shown["reason"] for name, shown in choice["probes"].items()} == {
        "risk": "one_generated_token",
        "early": "not_finite",
    }


async def test_logprobs_entries_carry_scores(client: Client) -> None:
    choice = await client.choice(probes={"names": ["risk", "early"], "tokens": True}, logprobs=True)
    content = choice["logprobs"]["content"]
    assert "probe_scores" not in content[-1]
    for j, entry in enumerate(content[:-1]):
        for name in ("risk", "early"):
            token = choice["probes"][name]["tokens"][j]
            assert entry["probe_scores"][name] == {"logit": token["logit"], "score": token["score"]}


async def test_logprobs_without_probes_are_left_alone(client: Client) -> None:
    choice = await client.choice(logprobs=True, steering=[{"vector": "calm"}])
    assert all("probe_scores" not in entry for entry in choice["logprobs"]["content"])
