"""What follows from the pairs of `pilothouse bench`: ratios, targets, slopes, memory, the report, what is committed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pilothouse.cli.bench import peer
from pilothouse.cli.bench.command import report_of
from pilothouse.cli.bench.journal import Journal
from pilothouse.cli.bench.measure import FITTED, PAIR, PEER, SINGLE, SINGLES
from pilothouse.cli.bench.memory import MAX_TOKENS, N_NUMBERS, buffer_bytes
from pilothouse.cli.bench.plots import GROWTH, RATIOS, draw
from pilothouse.cli.bench.report import render
from pilothouse.cli.bench.scenarios import LEAST_PAIRS, layers_scenario
from pilothouse.cli.bench.shapes import HARBOR, LLAMA_8B
from pilothouse.cli.bench.summary import TARGETS, TTFT_TARGETS, memory_of, summarise
from pilothouse.cli.bench.variants import AGAIN, DEFAULTS, IDLE, PLAIN, STEERED
from pilothouse.core.config import EngineLayout
from pilothouse.engine import chains
from pilothouse.engine.sites import Stream, install_sites

BENCH = Path(__file__).parents[2] / "bench"
NAME = "harbor, batch 16"


def burst(rate: float, streamed: bool = False) -> dict[str, Any]:
    """200 tokens at this many a second; a second of processor time for each of time."""
    seconds = 200 / rate
    times = (1000 / rate, 100 / rate, 300 / rate) if streamed else (None, None, None)
    names = ("ttft_ms", "itl_p50_ms", "itl_p99_ms")
    return {"seconds": seconds, "tokens": 200, "cpu_seconds": seconds, **dict(zip(names, times, strict=True))}


def pairs(name: str, rates: list[tuple[float, float]], scenario: str = NAME, **fields: Any) -> list[dict[str, Any]]:
    """Lines of a comparison whose sides have these tokens per second, newest first."""
    streamed = fields.pop("streamed", False)
    return [
        {
            "scenario": scenario,
            "kind": PAIR,
            "comparison": name,
            "number": number,
            "latency": False,
            "first": "variant",
            "variant": burst(ours, streamed),
            "beside": burst(beside, streamed),
            **fields,
        }
        for number, (ours, beside) in reversed(list(enumerate(rates)))
    ]


def fitted(scenario: str = NAME, model: str = "harbor", batch: int = 16) -> dict[str, Any]:
    return {
        "scenario": scenario,
        "kind": FITTED,
        "model": model,
        "title": "a model",
        "dtype": "float32",
        "batch": batch,
        "tokens_in": 128,
        "wanted": 256,
        "rounds": 8,
        "tokens_out": 64,
        "flags": ["--max-num-seqs", "64"],
        "our_flags": {"ours": [], "wide": ["--max-probes", "64"]},
        "layouts": {},
    }


def single(name: str, more: float) -> list[dict[str, Any]]:
    return [
        {
            "scenario": NAME,
            "kind": SINGLE,
            "comparison": name,
            "number": number,
            "latency": False,
            "first": "beside",
            "variant": {"ttft_ms": 10.0 + number + more},
            "beside": {"ttft_ms": 10.0 + number},
        }
        for number in range(LEAST_PAIRS)
    ]


def journal_of(*groups: list[dict[str, Any]]) -> Journal:
    journal = Journal()
    for line in [line for group in groups for line in group]:
        journal.add(line)
    return journal


def whole_run() -> Journal:
    rates = [(99.0, 100.0), (96.0, 100.0), *[(98.0, 100.0)] * (LEAST_PAIRS - 2)]
    layers = [
        pairs(f"{STEERED.name} at {n} of 6 layers", [(1e6 / (10_000 + 20 * n), 100.0)], "layers") for n in (1, 3, 6)
    ]
    return journal_of(
        [fitted(), fitted("layers")],
        pairs(AGAIN.name, [(101.0, 100.0)]),
        *[pairs(variant.name, rates, streamed=variant.streamed) for variant in DEFAULTS],
        pairs("idle, streamed", rates[:1], streamed=True, latency=True),
        *layers,
        *[single(comparison.variant.name, 0.4) for comparison in SINGLES],
        [{"scenario": NAME, "kind": PEER, "rates": {"hooks": [30.0, 25.0, 20.0], "repeng": peer.NOT_INSTALLED}}],
    )


def test_a_ratio_is_the_median_of_those_within_pairs() -> None:
    lines = pairs(IDLE.name, [(50.0, 100.0), (9.0, 10.0), (10.0, 50.0)])
    (row,) = summarise(lines, seed=0)["throughput"]
    assert (row["pairs"], row["tokens_per_second"]) == (3, pytest.approx(10.0))
    assert row["ratio"] == pytest.approx(0.5)
    assert (row["low"], row["high"]) == pytest.approx((0.2, 0.9))
    assert row["cpu"]["ratio"] == pytest.approx(2.0)
    assert row["cpu_per_1000"] == pytest.approx(100.0)
    assert "ttft_ms" not in row


def test_latencies_are_of_streams_and_beside_those_of_the_same_pair() -> None:
    (row,) = summarise(pairs(IDLE.name, [(50.0, 100.0), (20.0, 25.0)], streamed=True), seed=0)["throughput"]
    assert row["ttft_ms"]["variant"] == pytest.approx(35.0)
    assert row["ttft_ms"]["more"] == pytest.approx(10.0)
    assert row["itl_p99_ms"]["beside"] == pytest.approx(7.5)


@pytest.mark.parametrize("met", [True, False])
def test_targets_are_of_the_columns_that_were_promised(met: bool) -> None:
    for model, targets in TARGETS.items():
        scenario = f"{model}, batch 16"
        for variant, target in zip(DEFAULTS, targets, strict=True):
            ratio = target + (0.001 if met else -0.001)
            for n, expected in ((LEAST_PAIRS, met), (LEAST_PAIRS - 1, None)):
                lines = pairs(variant.name, [(ratio * 100, 100.0)] * n, scenario)
                (row,) = summarise(lines, seed=0)["throughput"]
                assert (row["target"], row["met"]) == (target, expected)


@pytest.mark.parametrize(
    ("scenario", "comparison", "has_one"),
    [
        ("harbor, batch 32", IDLE.name, False),
        ("harbor, 960 tokens in", IDLE.name, False),
        (NAME, AGAIN.name, False),
        ("llama-8b, batch 256", IDLE.name, True),
        ("llama-8b, batch 1, 64 probes", DEFAULTS[3].name, True),
        ("qwen3-4b, batch 32", IDLE.name, False),
    ],
)
def test_other_loads_have_no_targets(scenario: str, comparison: str, has_one: bool) -> None:
    (row,) = summarise(pairs(comparison, [(1.0, 1.0)], scenario), seed=0)["throughput"]
    assert ("target" in row) == has_one


def test_times_to_the_first_token_are_differences() -> None:
    lines = [line for comparison in SINGLES for line in single(comparison.variant.name, 0.75)]
    rows = {row["comparison"]: row for row in summarise(lines, seed=0)["single_requests"]}
    assert set(TTFT_TARGETS) < set(rows)
    registered, inline = (rows[name] for name in TTFT_TARGETS)
    assert registered["more"] == pytest.approx(0.75)
    assert (registered["met"], inline["met"]) == (False, True)
    (few,) = summarise(single(registered["comparison"], 0.75)[1:], seed=0)["single_requests"]
    assert few["met"] is None


def test_slopes_go_through_the_time_that_steering_adds() -> None:
    lines = whole_run().lines
    (slope,) = summarise(lines, seed=0)["slopes"]
    assert slope["points"] == [[1, pytest.approx(20.0)], [3, pytest.approx(60.0)], [6, pytest.approx(120.0)]]
    assert (slope["slope"], slope["explained"]) == (pytest.approx(20.0), pytest.approx(1.0))
    batches = [
        line
        for batch in (1, 8, 32)
        for line in (
            fitted(f"harbor, batch {batch}", batch=batch),
            *pairs(STEERED.name, [(1e6 / (10_000 + 5), 100.0)], f"harbor, batch {batch}"),
        )
    ]
    (slope,) = summarise(batches, seed=0)["slopes"]
    assert slope["slope"] == pytest.approx(5.0)


def test_the_scenario_of_layers_has_a_slope() -> None:
    scenario = layers_scenario(HARBOR)
    lines = [line for c in scenario.comparisons for line in pairs(c.name, [(95.0, 100.0)], scenario.name)]
    (slope,) = summarise([fitted(scenario.name), *lines], seed=0)["slopes"]
    assert [x for x, _ in slope["points"]] == [1, 3, 6]
    assert "hooked layers" in render(report_of([], journal_of([fitted(scenario.name)], lines), seed=0))


def test_peers_stand_beside_plain_vllm_of_the_same_scenario() -> None:
    hooks, repeng = summarise(whole_run().lines, seed=0)["peers"]
    assert (hooks["tokens_per_second"], hooks["ratio"]) == (25.0, pytest.approx(0.25))
    assert repeng["why_not"] == "not installed"


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        (EngineLayout(), torch.bfloat16),
        (EngineLayout(chain_steps=0, readouts=64), torch.float32),
        (EngineLayout(rows=9, chains=5, chain_steps=2, readouts=1), torch.float16),
    ],
)
def test_memory_is_what_the_modules_allocate(layout: EngineLayout, dtype: torch.dtype) -> None:
    d_model, max_tokens = 24, 100
    blocks = {layer: torch.nn.Identity() for layer in range(3)}
    buffers, sites = install_sites(
        blocks,
        layout,
        dict.fromkeys(blocks, Stream()),
        d_model=d_model,
        dtype=dtype,
        max_tokens=max_tokens,
        device=torch.device("cpu"),
    )
    found = buffer_bytes(layout, d_model, len(sites), dtype.itemsize, max_tokens)
    banks = [bank for site in sites.values() for bank in site.bank.buffers()]
    assert found == {
        "edits": sum(site.edits.nbytes for site in sites.values()),
        "chains": sum(bank.nbytes for bank in banks),
        "readouts": sum(site.readouts.nbytes for site in sites.values()),
        "tokens": sum(buffer.nbytes for buffer in buffers.buffers()),
    }
    assert N_NUMBERS == chains.N_NUMBERS


def test_memory_of_an_8b_model_is_held_against_its_target() -> None:
    row = memory_of(LLAMA_8B, EngineLayout())
    assert row["weights"] == 2 * 8_030_261_248
    assert row["buffers"] == buffer_bytes(EngineLayout(), 4096, 32, 2, MAX_TOKENS)
    assert sum(row["buffers"].values()) <= 0.01 * row["weights"]
    assert row["met"]
    assert "target" not in memory_of(HARBOR, EngineLayout())


def test_the_report_says_what_was_met_and_what_it_was_measured_with(tmp_path: Path) -> None:
    report = report_of([], whole_run(), seed=0)
    plots = draw(tmp_path, report["summary"])
    assert plots == [RATIOS, GROWTH]
    first = (tmp_path / RATIOS).read_bytes()
    draw(tmp_path, report["summary"])
    assert (tmp_path / RATIOS).read_bytes() == first
    text = render(report, plots)
    assert "| harbor, batch 16 | 0.980 (>= 0.97): met | 0.980 (>= 0.95): met |" in text
    assert f"![{RATIOS}]({RATIOS})" in text
    assert "--max-probes 64" in text
    assert "64 (shortened from 256 to fit the time)" in text
    assert "| repeng | not installed |" in text
    assert report["machine"]["processor"] in text
    assert "idle, streamed" in text.split("## Latency")[1]
    assert "idle, streamed" not in text.split("## Latency")[0]
    assert "µs per output token and layer" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_a_missed_target_is_called_so() -> None:
    for n, said in ((LEAST_PAIRS, "**missed**"), (3, "too few pairs (3)")):
        report = report_of([], journal_of([fitted()], pairs(IDLE.name, [(96.0, 100.0)] * n)), seed=0)
        text = render(report)
        assert f"0.960 (>= 0.97): {said} | not measured" in text
        assert ("not to be quoted" in text) == (n < LEAST_PAIRS)
        assert ("| 3 (of 8: the time was up) |" in text) == (n < LEAST_PAIRS)


def test_the_report_says_where_one_server_of_ours_was_all() -> None:
    lines = pairs(IDLE.name, [(96.0, 100.0)] * LEAST_PAIRS)
    said = f"{NAME}: one server of ours for all columns, with room for 64 probes"
    both = fitted()
    wide = {**both, "our_flags": {"wide": ["--max-probes", "64"]}}
    assert said in render(report_of([], journal_of([wide], lines), seed=0))
    assert said not in render(report_of([], journal_of([both], lines), seed=0))


def test_a_peer_is_measured_with_and_without_hooks() -> None:
    class Block(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x,)

    blocks = torch.nn.ModuleList([Block(), torch.nn.Identity()])
    model = SimpleNamespace(
        model=SimpleNamespace(layers=blocks),
        config=SimpleNamespace(hidden_size=4),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    seen: list[bool] = []

    def generate(tokens: int) -> float:
        x = torch.zeros(1, 4)
        for block in blocks:
            out = block(x)
            x = out[0] if isinstance(out, tuple) else out
        seen.append(bool(x.any()))
        return float(tokens)

    found = peer.measure(model, generate, 8)
    assert found == {peer.WITHOUT: [8.0] * 3, peer.HOOKS: [8.0] * 3, peer.REPENG: peer.NOT_INSTALLED}
    assert seen == [False] * 4 + [True] * 3
    assert not any(block._forward_hooks for block in blocks)


@pytest.mark.parametrize(
    ("folder", "scenario"), [("", NAME), ("small", "qwen3-0.5b, batch 16"), ("more", ""), ("loads", "")]
)
def test_the_committed_figures_follow_from_their_items(folder: str, scenario: str) -> None:
    committed = json.loads((BENCH / folder / "results.json").read_text(encoding="utf-8"))
    assert set(committed) == {"machine", "versions", "seed", "summary", "memory", "items"}
    again = json.loads(json.dumps(summarise(committed["items"], committed["seed"])))
    assert committed["summary"] == _about(again)
    rows = committed["summary"]["throughput"]
    assert rows
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    if scenario:
        found = {row["comparison"] for row in rows if row["scenario"] == scenario}
        assert found >= {AGAIN.name, *(variant.name for variant in DEFAULTS)}
    assert (BENCH / folder / "report.md").read_text(encoding="utf-8").startswith("# What steering and reading cost")
    assert PLAIN.server == "plain"


def _about(value: Any) -> Any:
    """The same with every number approximate: medians of two numpy releases may differ in the last digit."""
    if isinstance(value, dict):
        return {key: _about(found) for key, found in value.items()}
    if isinstance(value, list):
        return [_about(found) for found in value]
    return pytest.approx(value) if isinstance(value, float) else value
