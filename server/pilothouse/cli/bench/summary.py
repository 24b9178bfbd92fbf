"""What follows from the pairs: ratios with intervals, targets met or missed, slopes, peers, memory.

Every figure can be computed again from the lines of a journal, which are committed with it.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pilothouse.cli.bench.journal import Line
from pilothouse.cli.bench.measure import FITTED, PAIR, PEER, PROMPT, SINGLE
from pilothouse.cli.bench.medians import line_through, median_of
from pilothouse.cli.bench.memory import buffer_bytes
from pilothouse.cli.bench.prompt import summarise_prompt_scores
from pilothouse.cli.bench.rounds import SIDES
from pilothouse.cli.bench.scenarios import LEAST_PAIRS
from pilothouse.cli.bench.shapes import BYTES, LLAMA_8B, Model
from pilothouse.cli.bench.variants import DEFAULTS, STEERED
from pilothouse.core.config import EngineLayout

TARGETS = {
    "qwen3-0.5b": (0.99, 0.98, 0.97, 0.95),
    "harbor": (0.97, 0.95, 0.93, 0.90),
    "llama-8b": (0.995, 0.99, 0.985, 0.98),
}
"""Least ratios to plain vLLM by model, in the order of `DEFAULTS`."""
TTFT_TARGETS = {"a registered vector, one request": 0.5, "a new inline vector of 8 layers (or all), one request": 3.0}
"""Most milliseconds to the first token beyond plain vLLM's."""
MEMORY_TARGET = 0.01
"""Largest share of an 8B model's weights that the hooks may take at the defaults."""


def summarise(lines: Sequence[Line], seed: int) -> dict[str, Any]:
    """Everything that a report shows, by subject."""
    pairs = [line for line in lines if line["kind"] == PAIR]
    rows = [_row(group, seed) for group in _groups(pairs)]
    return {
        "throughput": rows,
        "single_requests": [_single(group, seed) for group in _groups([x for x in lines if x["kind"] == SINGLE])],
        "slopes": _slopes(lines, rows),
        "prompt_scores": summarise_prompt_scores([line for line in lines if line["kind"] == PROMPT]),
        "peers": [row for line in lines if line["kind"] == PEER for row in _peer(line, pairs)],
    }


def memory_of(model: Model, layout: EngineLayout) -> dict[str, Any]:
    """Bytes that the hooks take beside a model's weights, at sites on all layers."""
    parts = buffer_bytes(layout, model.width, model.depth, BYTES[model.dtype])
    share = sum(parts.values()) / model.weight_bytes
    target = {"target": MEMORY_TARGET, "met": share <= MEMORY_TARGET} if model.key == LLAMA_8B.key else {}
    return {
        "model": model.title,
        "dtype": model.dtype,
        "weights": model.weight_bytes,
        "buffers": dict(parts),
        "share": share,
        **target,
    }


def _groups(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines of the same comparison of the same scenario, in the order in which these were first seen."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["scenario"], line["comparison"]), []).append(line)
    return [sorted(group, key=lambda line: int(line["number"])) for group in found.values()]


def _rate(burst: Mapping[str, Any]) -> float:
    return float(burst["tokens"] / burst["seconds"])


def _row(group: Sequence[Line], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    ratios = np.array([_rate(line["variant"]) / _rate(line["beside"]) for line in group])
    row = {
        "scenario": group[0]["scenario"],
        "comparison": group[0]["comparison"],
        "pairs": len(group),
        "latency": bool(group[0]["latency"]),
        "tokens_per_second": statistics.median(_rate(line["variant"]) for line in group),
        **median_of(ratios, rng),
        **_cpu(group, rng),
        **_latencies(group, rng),
    }
    target = _target(row["scenario"], row["comparison"])
    return row if target is None else {**row, "target": target, "met": _held(row["ratio"] >= target, group)}


def _cpu(group: Sequence[Line], rng: np.random.Generator) -> dict[str, Any]:
    """Processor seconds of the server for 1,000 output tokens, and their ratio."""
    per_token = {
        side: np.array([1000 * line[side]["cpu_seconds"] / line[side]["tokens"] for line in group]) for side in SIDES
    }
    ratios = median_of(per_token["variant"] / np.maximum(per_token["beside"], 1e-9), rng)
    return {"cpu_per_1000": float(np.median(per_token["variant"])), "cpu": ratios}


def _latencies(group: Sequence[Line], rng: np.random.Generator) -> dict[str, Any]:
    """Of streams: medians of either side in milliseconds, and the median difference with its interval."""
    found = {}
    for name in ("ttft_ms", "itl_p50_ms", "itl_p99_ms"):
        sides = [[line[side][name] for line in group if line[side][name] is not None] for side in SIDES]
        if len(sides[0]) == len(sides[1]) == len(group):
            found[name] = _difference(np.array(sides[0]), np.array(sides[1]), rng)
    return found


def _difference(ours: Any, beside: Any, rng: np.random.Generator) -> dict[str, float]:
    more = median_of(ours - beside, rng)
    return {
        "variant": float(np.median(ours)),
        "beside": float(np.median(beside)),
        "more": more["ratio"],
        "low": more["low"],
        "high": more["high"],
    }


def _single(group: Sequence[Line], seed: int) -> dict[str, Any]:
    ours, beside = (np.array([line[side]["ttft_ms"] for line in group]) for side in SIDES)
    name = group[0]["comparison"]
    row = {
        "scenario": group[0]["scenario"],
        "comparison": name,
        "pairs": len(group),
        **_difference(ours, beside, np.random.default_rng(seed)),
    }
    target = TTFT_TARGETS.get(name)
    return row if target is None else {**row, "target": target, "met": _held(row["more"] <= target, group)}


def _held(met: bool, group: Sequence[Line]) -> bool | None:
    """Whether a target was met; None where there are too few pairs to tell."""
    return bool(met) if len(group) >= LEAST_PAIRS else None


def _target(scenario: str, comparison: str) -> float | None:
    """The least ratio that was promised: at batch 16 on a CPU, at all batches on a GPU."""
    model, _, load = scenario.partition(", ")
    columns = [variant.name for variant in DEFAULTS]
    if model not in TARGETS or comparison not in columns or not load.startswith("batch"):
        return None
    if model != LLAMA_8B.key and load.split(", ")[0] != "batch 16":
        return None
    return TARGETS[model][columns.index(comparison)]


def _slopes(lines: Sequence[Line], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the time that steering adds grows with hooked layers, and with the tokens of a batch."""
    of = {line["scenario"]: line for line in lines if line["kind"] == FITTED}
    steered = f"{STEERED.name} at "
    found = []
    for scenario in of:
        layers = [
            (int(row["comparison"].removeprefix(steered).split()[0]), _added_us(lines, scenario, row["comparison"]))
            for row in rows
            if row["scenario"] == scenario and row["comparison"].startswith(steered)
        ]
        if len(layers) > 1:
            found.append(_slope(f"{scenario}: hooked layers", "µs per output token and layer", layers))
    for model in sorted({about["model"] for about in of.values()}):
        batches = [
            (about["batch"], _added_us(lines, name, STEERED.name) * about["batch"])
            for name, about in of.items()
            if about["model"] == model
            and about["tokens_in"] == 128
            and any(row["scenario"] == name and row["comparison"] == STEERED.name for row in rows)
        ]
        if len(batches) > 2:
            found.append(_slope(f"{model}: tokens of a batch", "µs per step and token", sorted(batches)))
    return found


def _slope(name: str, unit: str, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {"name": name, "unit": unit, "points": list(map(list, points)), **line_through(*zip(*points, strict=True))}


def _added_us(lines: Sequence[Line], scenario: str, comparison: str) -> float:
    """Median microseconds that an output token takes longer than beside it."""
    more = [
        1e6 / _rate(line["variant"]) - 1e6 / _rate(line["beside"])
        for line in lines
        if line["kind"] == PAIR and line["scenario"] == scenario and line["comparison"] == comparison
    ]
    return statistics.median(more)


def _peer(line: Line, pairs: Sequence[Line]) -> list[dict[str, Any]]:
    """A row for each implementation: tokens per second and ratio to plain vLLM's median, or why there are none."""
    plain = [
        _rate(pair["beside"])
        for pair in pairs
        if pair["scenario"] == line["scenario"] and pair["beside"]["ttft_ms"] is None
    ]
    found = []
    for name, rates in line["rates"].items():
        row = {"scenario": line["scenario"], "peer": name}
        if isinstance(rates, str):
            found.append({**row, "why_not": rates})
        else:
            rate = statistics.median(rates)
            found.append({**row, "tokens_per_second": rate, "ratio": rate / statistics.median(plain)})
    return found
