"""Kinds of requests that need flags of the server, on one that has little room for blocks and plans."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine_support.harness import Reference
from matrix_support.columns import Columns
from matrix_support.expected import LOGPROB_TOLERANCE, Oracle
from matrix_support.flagged_kinds import FLAGS, KINDS
from matrix_support.requests import COMPLETION, OTHERS, PROBES, STEERING, Sent, ask, counters, send
from prometheus_client.parser import text_string_to_metric_families
from serve_support.server import Server, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def flagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("flagged"), *FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def oracle(flagged: Server, reference: Reference) -> Oracle:
    return Oracle(flagged, reference)


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def sent(flagged: Server, kind: str) -> Sent:
    before = preemptions(flagged)
    found = send(flagged, KINDS[kind])
    assert not KINDS[kind].priorities or preemptions(flagged) > before, "there was room for all of them"
    return found


def preemptions(server: Server) -> float:
    families = text_string_to_metric_families(server.get("/metrics").text)
    return sum(s.value for family in families for s in family.samples if s.name == "vllm:num_preemptions_total")


class TestKinds(Columns):
    """Every column of the kinds."""


@pytest.fixture(scope="module")
def embedded(reference: Reference) -> tuple[dict[str, Any], list[int]]:
    """A request with a prompt of embeddings, and the tokens that they are of."""
    tokens = [1, 45, 300, 1200, 77, 640]
    rows = reference.model.get_input_embeddings().weight[tokens].detach().clone()
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    body = {**COMPLETION, "prompt": None, "prompt_embeds": base64.b64encode(buffer.getvalue()).decode()}
    return body, tokens


@pytest.mark.parametrize(
    ("column", "fields"),
    [
        ("readouts", {"probes": PROBES}),
        ("log-probabilities", {"steering": STEERING}),
        ("receipts", {"steering": STEERING, "probes": []}),
    ],
)
@pytest.mark.cell("requests", "prompt embeddings", "{column}")
def test_a_prompt_of_embeddings_is_refused_what_needs_token_ids(
    flagged: Server,
    embedded: tuple[dict[str, Any], list[int]],
    column: str,
    fields: dict[str, Any],
    refused: Callable[[str], None],
) -> None:
    for stream in (False, True):
        answer = flagged.post("/v1/completions", {**embedded[0], **fields, "stream": stream})
        assert answer.status_code == 400, answer.text
        refused(answer.json()["error"]["message"])


@pytest.mark.cell("requests", "prompt embeddings", "unsteered")
def test_a_prompt_of_embeddings_is_untouched(
    flagged: Server, oracle: Oracle, embedded: tuple[dict[str, Any], list[int]]
) -> None:
    """Default probes cannot read it, and do not stand in its way."""
    body, tokens = embedded
    variants: list[dict[str, Any]] = [{}, {"probes": []}, {"stream": True}]
    for fields in variants:
        answer = ask(flagged, "/v1/completions", {**body, **fields})
        (choice,) = answer.choices
        assert not choice.shown
        predicted, _ = oracle.reference.run(tokens, choice.token_ids, None)
        expected = [float(predicted[i, token]) for i, token in enumerate(choice.token_ids)]
        assert choice.logprobs == pytest.approx(expected, abs=LOGPROB_TOLERANCE)


@pytest.mark.cell("requests", "prompt embeddings", "no leaks")
def test_prompts_of_embeddings_leave_nothing_behind(
    flagged: Server, embedded: tuple[dict[str, Any], list[int]]
) -> None:
    body, _ = embedded
    before = counters(flagged)
    first = ask(flagged, "/v1/completions", body)
    for steering in OTHERS:
        ask(flagged, "/v1/completions", {**COMPLETION, "steering": steering, "probes": []})
        assert flagged.post("/v1/completions", {**body, "steering": steering}).status_code == 400
    again = ask(flagged, "/v1/completions", body)
    assert (again.choices[0].token_ids, again.choices[0].logprobs) == (
        first.choices[0].token_ids,
        first.choices[0].logprobs,
    )
    unscored = "pilothouse_probe_unscored_total", "truthfulness", "no_token_ids"
    assert counters(flagged)[unscored] == before.get(unscored, 0.0) + 2
    assert "Slots are not as they should be" not in flagged.log.read_text(errors="replace")
