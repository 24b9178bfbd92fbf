"""The contract's numbers, computed slowly and by the letter from the tensors in the files; nothing of the server's."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pilothouse.core.sites import Float32

Stream = Callable[[int, int], Float32]
"""(position, layer) -> the residual stream there."""


def logit(tensors: Mapping[str, Float32], stream: Stream, position: int) -> float:
    """bias + sum over layers of ((h - mean) / std) . weight."""
    total = float(tensors["bias"][0]) if "bias" in tensors else 0.0
    for name, weight in tensors.items():
        kind, _, layer = name.partition(".")
        if kind != "weight":
            continue
        h = stream(position, int(layer))
        for i in range(len(weight)):
            mean = float(tensors[f"mean.{layer}"][i]) if f"mean.{layer}" in tensors else 0.0
            std = float(tensors[f"std.{layer}"][i]) if f"std.{layer}" in tensors else 1.0
            total += (float(h[i]) - mean) / std * float(weight[i])
    return total


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def calibrated(card: Mapping[str, Any], x: float) -> float:
    scale = card.get("calibration") or {"a": 1.0, "b": 0.0}
    return sigmoid(scale["a"] * x + scale["b"])


def stats(card: Mapping[str, Any], logits: list[float], prompt_end: float) -> dict[str, float | int | None]:
    """`stats` of the scored tokens' logits."""
    if not logits:
        names = ("last", "mean", "min", "max", "worst_ema", "worst_rolling", "fraction_flagged", "first_flagged")
        return {**dict.fromkeys(names), "prompt_end": prompt_end}
    high = card["alarm"] == "high"
    worst = max if high else min
    ema = [logits[0]]
    for z in logits[1:]:
        ema.append(z / 2 + ema[-1] / 2)
    rolling = [sum(logits[max(i - 15, 0) : i + 1]) / min(i + 1, 16) for i in range(len(logits))]
    past = [calibrated(card, z) > card["threshold"] if high else calibrated(card, z) < card["threshold"] for z in ema]
    return {
        "last": logits[-1],
        "mean": sum(logits) / len(logits),
        "min": min(logits),
        "max": max(logits),
        "worst_ema": worst(ema),
        "worst_rolling": worst(rolling),
        "fraction_flagged": sum(past) / len(past),
        "first_flagged": past.index(True) if any(past) else None,
        "prompt_end": prompt_end,
    }
