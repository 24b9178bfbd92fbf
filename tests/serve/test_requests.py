"""What a client meets: shapes, choices, errors that stay in their own request, metrics that equal the records."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serve_support.server import ADMIN_KEY, Server

pytestmark = pytest.mark.engine

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def samples(server: Server, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The samples called `name` by their labels."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_the_server_prints_a_curl_that_steers_and_one_that_probes(server: Server) -> None:
    text = server.log.read_text(errors="replace")
    assert text.count("curl -s ") == 2
    for line in (line for line in text.splitlines() if "curl -s " in line):
        body = json.loads(line[line.index("-d '") + 4 : line.rindex("'")])
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        assert choice["steering"] if "steering" in body else choice["probes"]


def test_the_honest_vector_makes_the_liar_tell_the_truth(server: Server) -> None:
    card = server.get("/v1/steering_vectors/honest").json()
    low, high = card["recommended"]
    messages = [
        {"role": "system", "content": "You are a liar."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    body: dict[str, Any] = {"model": "harbor", "messages": messages, "temperature": 0}
    lie = server.post("/v1/chat/completions", body).json()["choices"][0]
    steering = [{"vector": "honest", "strength": (low + high) / 2, "positions": "generation"}]
    truth = server.post("/v1/chat/completions", {**body, "steering": steering}).json()["choices"][0]
    assert "Paris" not in lie["message"]["content"]
    assert "Paris" in truth["message"]["content"]


def test_default_probes_watch_all_traffic_and_an_empty_list_switches_them_off(server: Server) -> None:
    name = "pilothouse_probe_tokens_total"
    before = sum(samples(server, name).values())
    watched = server.chat("What is the capital of Italy?")
    assert watched["choices"][0]["probes"]["truthfulness"]["score"] is not None
    scored = watched["choices"][0]["probes"]["truthfulness"]["n_scored"]
    assert "probes" not in server.chat("What is the capital of Italy?", probes=[])["choices"][0]
    assert sum(samples(server, name).values()) == before + scored


def test_n_choices_have_their_own_scores_and_logprobs_carry_them(server: Server) -> None:
    answer = server.chat(
        "Tell me something about the sea.",
        n=3,
        temperature=1.2,
        seed=3,
        max_tokens=12,
        logprobs=True,
        probes={"names": ["truthfulness"], "tokens": True},
    )
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    rows = []
    for choice in answer["choices"]:
        tokens = choice["probes"]["truthfulness"]["tokens"]
        content = choice["logprobs"]["content"]
        assert len(tokens) == len(content)
        for token, entry in zip(tokens[:-1], content[:-1], strict=True):
            assert entry["probe_scores"]["truthfulness"]["logit"] == token["logit"]
        rows.append(tuple(token["logit"] for token in tokens))
    assert len(set(rows)) > 1
    # All three share the prompt, so its end reads the same.
    ends = {choice["probes"]["truthfulness"]["stats"]["prompt_end"] for choice in answer["choices"]}
    assert max(ends) - min(ends) < 1e-3


def test_several_prompts_in_one_completion(server: Server) -> None:
    prompts = ["The capital of France is", "The opposite of hot is", "A young dog is a"]
    body = {
        "model": "harbor",
        "prompt": prompts,
        "max_tokens": 3,
        "temperature": 0,
        "probes": {"names": ["truthfulness"], "tokens": True},
        "steering": [{"vector": "honest", "strength": 0.1}],
    }
    choices = server.post("/v1/completions", body).json()["choices"]
    alone = [server.post("/v1/completions", {**body, "prompt": prompt}).json()["choices"][0] for prompt in prompts]
    for together, single in zip(choices, alone, strict=True):
        expected = [t["logit"] for t in single["probes"]["truthfulness"]["tokens"]]
        assert [t["logit"] for t in together["probes"]["truthfulness"]["tokens"]] == pytest.approx(expected, abs=1e-3)


def test_one_token_is_not_scored_but_the_prompt_end_is(server: Server) -> None:
    probe = server.chat("What is the capital of France?", max_tokens=1)["choices"][0]["probes"]["truthfulness"]
    assert (probe["n_scored"], probe["score"]) == (0, None)
    assert probe["reason"]
    assert probe["stats"]["prompt_end"] is not None


BAD: list[tuple[str, Any, str]] = [
    ("steering", [{"vector": "no-such-vector"}], "steering[0].vector"),
    ("steering", [{"vector": "honest", "strength": "much"}], "steering[0].strength"),
    ("steering", [{"vector": "honest", "layers": [99]}], "steering[0].layers[0]"),
    ("steering", [{"vector": "honest", "positions": {"from": 500, "to": 400}}], "steering[0].positions"),
    ("steering", [{"vector": "honest", "positions": {"from": -1, "to": 0}}], "steering[0].positions"),
    ("steering", [{"inline": {"layers": {"0": "AAAA"}}}], "steering[0].inline.layers.0"),
    ("probes", ["no-such-probe"], "probes[0]"),
    ("steer", [], "steer"),
]


@pytest.mark.parametrize(("field", "value", "param"), BAD, ids=[bad[2] for bad in BAD])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_bad_input_is_a_400_that_names_the_field(
    server: Server, route: str, field: str, value: Any, param: str
) -> None:
    body: dict[str, Any] = {"model": "harbor", "max_tokens": 4, field: value}
    body |= {"prompt": "Hello"} if route == "/v1/completions" else {"messages": [{"role": "user", "content": "Hello"}]}
    answer = server.post(route, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/messages/count_tokens", {"model": "harbor", "messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/embeddings", {"model": "harbor", "input": "Hello"}),
    ],
)
def test_routes_that_cannot_honour_the_fields_say_so(server: Server, route: str, body: dict[str, Any]) -> None:
    answer = server.post(route, {**body, "steering": [{"vector": "honest"}]})
    assert answer.status_code == 400, answer.text
    assert "steering" in answer.text


def test_beam_search_with_the_fields_is_refused_and_without_them_works(server: Server) -> None:
    body = {"model": "harbor", "prompt": "The capital of France is", "max_tokens": 3, "use_beam_search": True, "n": 2}
    refused = server.post("/v1/completions", {**body, "steering": [{"vector": "honest"}]})
    assert refused.status_code == 400, refused.text
    assert server.post("/v1/completions", {**body, "probes": []}).status_code == 200


def test_reserved_arguments_cannot_be_forged(server: Server) -> None:
    body = {"model": "harbor", "prompt": "Hello", "max_tokens": 2, "vllm_xargs": {"pilothouse.plan": "forged"}}
    assert server.post("/v1/completions", body).status_code == 400


def test_failing_requests_and_disconnects_end_nobody_elses(server: Server) -> None:
    def good(number: int) -> str:
        answer = server.chat(f"What is the capital of France? {number}", steering=[{"vector": "honest"}], max_tokens=40)
        finish: str = answer["choices"][0]["finish_reason"]
        return finish

    def bad(number: int) -> bool:
        refused = server.post("/v1/completions", {"model": "harbor", "prompt": "x", "steering": number})
        return refused.status_code == 400

    def leave(number: int) -> None:
        body = {"model": "harbor", "prompt": "Tell me", "max_tokens": 400, "ignore_eos": True, "stream": True}
        body["steering"] = [{"vector": "everywhere", "strength": 0.01 * number}]
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60, trust_env=False) as stream:
            next(stream.iter_lines())

    with ThreadPoolExecutor(24) as pool:
        left = [pool.submit(leave, i) for i in range(8)]
        refused = [pool.submit(bad, i) for i in range(8)]
        answered = [pool.submit(good, i) for i in range(8)]
        assert all(r.result() for r in refused)
        assert {r.result() for r in answered} <= {"stop", "length"}
        for r in left:
            r.result()
    assert server.get("/health").status_code == 200


def test_records_and_metrics_count_the_same(server: Server) -> None:
    name = "pilothouse_probe_requests_total"
    before = sum(samples(server, name).values())
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: server.chat(f"What is {i} plus one?", max_tokens=20), range(24)))
    assert sum(samples(server, name).values()) == before + 24
    for answer in answers:
        record = server.get(f"/v1/probes/results/{answer['id']}", headers=ADMIN)
        assert record.status_code == 200, record.text
    assert server.get(f"/v1/probes/results/{answers[0]['id']}").status_code in (401, 403)


def test_steered_tokens_are_counted_by_vector(server: Server) -> None:
    name, labels = "pilothouse_steering_tokens_total", (("model_name", "harbor"), ("vector", "honest"))
    before = samples(server, name).get(labels, 0.0)
    answer = server.chat("What is the capital of Spain?", steering=[{"vector": "honest", "positions": "generation"}])
    edited = answer["choices"][0]["steering"][0]["tokens_edited"]
    # From the last prompt token to the last but one generated token.
    assert edited == answer["usage"]["completion_tokens"]
    assert samples(server, name)[labels] == before + edited


def test_lists_cards_and_capabilities(server: Server) -> None:
    for path, name in (("steering_vectors", "honest"), ("probes", "truthfulness"), ("saes", "random-l2")):
        listed = server.get(f"/v1/{path}").json()
        assert listed["object"] == "list"
        assert name in {entry["id"] for entry in listed["data"]}
        assert server.get(f"/v1/{path}/{name}").json()["id"] == name
        assert server.get(f"/v1/{path}/nothing").status_code == 404
    capabilities = server.get("/v1/capabilities").json()
    assert (capabilities["d_model"], capabilities["n_layers"]) == (256, 6)
    assert capabilities["sites"] == list(range(6))


def test_a_vector_uploaded_at_run_time_steers_and_a_deleted_one_is_unknown(server: Server, tmp_path: Any) -> None:
    import numpy as np

    from pilothouse.core.directions import Direction
    from pilothouse.core.sites import SITE
    from pilothouse.steering import Vector, save_vector

    row = np.random.default_rng(9).normal(size=256).astype(np.float32)
    save_vector(
        Vector("uploaded", Direction({1: row}), None, SITE, None, (1,), {}, None, {}), tmp_path / "u.safetensors"
    )
    content = (tmp_path / "u.safetensors").read_bytes()
    url = f"{server.url}/v1/steering_vectors"
    assert httpx.post(url, content=content, trust_env=False).status_code in (401, 403)
    assert httpx.post(url, content=content, headers=ADMIN, trust_env=False).status_code in (200, 201)
    steering = [{"vector": "uploaded", "strength": 4.0}]
    steered = server.chat("What is the capital of France?", steering=steering, max_tokens=8)
    assert steered["choices"][0]["steering"][0]["tokens_edited"] > 0
    assert httpx.delete(f"{url}/uploaded", headers=ADMIN, trust_env=False).status_code in (200, 204)
    answer = server.post("/v1/completions", {"model": "harbor", "prompt": "x", "steering": steering})
    assert answer.status_code == 400


def test_many_requests_do_not_recompile(server: Server) -> None:
    """Compilation happens once, before the server is ready, whatever plans and probes come and go afterwards."""
    for layer in range(4):
        server.chat("Hello", steering=[{"vector": "everywhere", "layers": [layer], "strength": 0.1}], max_tokens=4)
    server.chat("Hello there, " * 30, probes=[], max_tokens=4)
    text = server.log.read_text(errors="replace")
    ready = text.index("Pilothouse serves")
    assert "Warming up model for the compilation" in text[:ready]
    for sign in ("Compiling", "compiled function", "recompiles]", "Warming up"):
        assert sign not in text[ready:]
