"""Responses and Messages as clients use them: helpers of the official clients, the background, turns, many at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import anthropic
import openai
import pytest
from engine_support.harness import Reference
from serve_support.routes import (
    ADMIN,
    LENGTH,
    PROBES,
    QUESTION,
    ROUTES,
    STEERING,
    Answer,
    ask,
    body_of,
    check_against_reference,
    plain_plan,
    send,
    steered_plan,
    tell,
)
from serve_support.server import Server

pytestmark = pytest.mark.engine

BOTH: dict[str, Any] = {"steering": STEERING, "probes": PROBES}


def openai_client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_requests_of_all_routes_at_once_keep_their_own_plans(server: Server, reference: Reference) -> None:
    cases = [(route, stream, bool(i % 2)) for i in range(2) for route in ROUTES for stream in (False, True)]

    def run(case: tuple[str, bool, bool]) -> Answer:
        route, stream, steered = case
        return ask(server, route, stream, **(BOTH if steered else {"probes": PROBES}))

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(run, cases))
    plans = {True: steered_plan(server), False: plain_plan()}
    for (_, _, steered), answer in zip(cases, answers, strict=True):
        check_against_reference(answer, reference, plans[steered])
        assert ("steering" in answer.found) is steered
    assert len({answer.id for answer in answers}) == len(cases)


@pytest.mark.parametrize("stream", [False, True])
def test_a_background_response_of_the_official_client(server: Server, reference: Reference, stream: bool) -> None:
    with openai_client(server) as client:
        common: dict[str, Any] = {"model": "harbor", "input": QUESTION, "temperature": 0, "max_output_tokens": LENGTH}
        made: Any = client.responses.create(**common, background=True, stream=stream, extra_body=BOTH)
        response_id = next(iter(made)).response.id if stream else made.id
        deadline = time.monotonic() + 60
        while (found := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if stream:
            list(made)
    answer = tell("Responses", [found.to_dict()], stream=False)
    check_against_reference(answer, reference, steered_plan(server))
    assert answer.steering[0]["tokens_edited"] == answer.n_tokens
    assert server.get(f"/v1/probes/results/{response_id}", headers=ADMIN).json()["error"] is None


def test_a_turn_behind_a_steered_one_is_what_it_says_itself(server: Server, reference: Reference) -> None:
    first = ask(server, "Responses", False, **BOTH)
    for fields, plan in (({"probes": PROBES}, plain_plan()), (BOTH, steered_plan(server))):
        again: dict[str, Any] = {**fields, "previous_response_id": first.id, "input": "What is the capital of Spain?"}
        answer = ask(server, "Responses", False, **again)
        assert len(answer.probe["prompt_tokens"]) > len(first.probe["prompt_tokens"]) + first.n_tokens
        check_against_reference(answer, reference, plan)


def test_openais_stream_helper_keeps_the_fields(server: Server) -> None:
    whole = ask(server, "Responses", False, **BOTH)
    with (
        openai_client(server) as client,
        client.responses.stream(
            model="harbor", input=QUESTION, temperature=0, max_output_tokens=LENGTH, extra_body=BOTH
        ) as stream,
    ):
        final = cast(Any, stream.get_final_response())
    assert final.output_text == whole.text
    assert final.steering == whole.steering
    assert final.probes["truthfulness"]["n_scored"] == whole.n_tokens - 1


async def test_anthropics_stream_helper_and_the_record(server: Server) -> None:
    whole = ask(server, "Messages", False, **BOTH)
    body: dict[str, Any] = body_of("Messages")
    more = {**BOTH, "temperature": body.pop("temperature")}
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:
        async with client.messages.stream(**body, extra_body=more) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        counted = await client.messages.count_tokens(model="harbor", messages=body["messages"])
    assert text == whole.text
    assert counted.input_tokens == len(whole.probe["prompt_tokens"])
    # The helper drops what it does not know, so the record is looked up by the message's id.
    record = server.get(f"/v1/probes/results/{final.id}", headers=ADMIN).json()
    assert record["choices"][0]["steering"] == whole.steering


def test_anthropics_client_raises_what_is_wrong(server: Server) -> None:
    body: dict[str, Any] = body_of("Messages")
    body.pop("temperature")
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(anthropic.BadRequestError, match=r"steering\[0\]\.vector: there is no"):
                client.messages.create(**body, stream=stream, extra_body={"steering": [{"vector": "nobody"}]})


@pytest.mark.parametrize("route", ["Responses", "Messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_default_probes_are_shown_and_an_empty_list_switches_them_off(server: Server, route: str, stream: bool) -> None:
    watched = ask(server, route, stream)
    assert watched.probe["n_scored"] == watched.n_tokens - 1
    off = ask(server, route, stream, probes=[])
    assert (off.found, off.text) == ({}, watched.text)
    assert server.get(f"/v1/probes/results/{off.id}", headers=ADMIN).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_vllms_own_error(server: Server, stream: bool) -> None:
    for route in ("Responses", "Messages"):
        assert send(server, route, stream, model="harbor:wild", steering=STEERING).status_code == 404


def test_a_gate_ends_the_answer_of_every_route(server: Server) -> None:
    gate = {"probe": "truthfulness", "when": "above", "threshold": 0.0, "action": "stop"}
    entry = {"vector": "honest", "positions": "generation", "gate": gate}
    for route in ("Responses", "Messages"):
        answer = ask(server, route, False, steering=[entry])
        assert answer.n_tokens == 1
        assert answer.steering[0]["gate"]["first_open"] is not None
    message = send(server, "Messages", False, steering=[entry]).json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "probe:truthfulness")
