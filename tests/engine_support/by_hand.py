"""One entry of `steering` as the request has it, done to Hugging Face's stream by the letter of the interface: nothing
of the server's takes part, neither its plans nor its formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_support.matrix import FEATURE, MAX_ACT, RESID_NORM, Files

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What should come of a request.

    logprobs: [n_generated, vocabulary]; watched: logits of the probe `watch` [n_tokens]; acts: where the edit acts
    [n_tokens]; nearest: how near the gate's probe or the clamped feature comes to where it turns, in spreads.
    """

    logprobs: Float64
    watched: Float64
    acts: Mask
    nearest: float


def layers_of(entry: Mapping[str, Any], files: Files) -> Mapping[int, Float64]:
    """The edited layers, and the direction at each."""
    if "sae" in entry:
        return {2: files.sae["W_dec"][FEATURE].astype(np.float64)}
    rows = files.vector if "vector" in entry else files.inline
    return {layer: row.astype(np.float64) for layer, row in rows.items()}


def unit_at(entry: Mapping[str, Any], layer: int) -> float:
    """How much one of `strength`, `min` or `max` is at `layer`."""
    match entry.get("unit"):
        case "max_act":
            return MAX_ACT
        case "resid_norm":
            return RESID_NORM[layer]
        case "raw":
            return 1.0
    return MAX_ACT if "sae" in entry and entry["op"] in ("add", "clamp", "min_clamp") else 1.0


def coefficients(entry: Mapping[str, Any], files: Files) -> dict[int, float]:
    """`strength` in raw numbers, by layer; of what only takes a share of the change, that share."""
    share = entry["op"] in ("ablate", "cap")
    return {n: entry["strength"] * (1.0 if share else unit_at(entry, n)) for n in layers_of(entry, files)}


def bounds(entry: Mapping[str, Any], files: Files) -> dict[int, tuple[float, float]]:
    """Of cap: `min` and `max` in raw numbers, by layer."""
    return {n: (entry["min"] * unit_at(entry, n), entry["max"] * unit_at(entry, n)) for n in layers_of(entry, files)}


def selected(positions: Any, n_prompt: int, n_tokens: int) -> Mask:
    """The positions that a selector means."""
    numbers = np.arange(n_tokens)
    match positions:
        case "all":
            return numbers >= 0
        case "prompt":
            return numbers < n_prompt - 1
        case "generation":
            return numbers >= n_prompt - 1
        case "last_prompt":
            return np.asarray(numbers == n_prompt - 1)
    first, end = (n + n_prompt if n < 0 else n for n in (positions["from"], positions["to"]))
    return np.asarray((numbers >= first) & (numbers < end))


def beyond(gate: Mapping[str, Any], logits: Float64, files: Files) -> tuple[Mask, float]:
    """Where the probe's token score is beyond the gate's threshold, the first position aside; and how near it comes to
    it, in spreads."""
    scale, threshold = files.calibration[gate["probe"]], gate["threshold"]
    calibrated = scale["a"] * logits + scale["b"]
    scores = 1.0 / (1.0 + np.exp(-calibrated))
    met = scores > threshold if gate["when"] == "above" else scores < threshold
    met[0] = False
    distances = np.abs(calibrated - np.log(threshold / (1.0 - threshold)))[1:]
    return met, float(distances.min() / calibrated.std())


def changed(states: Float64, entry: Mapping[str, Any], layer: int, files: Files) -> tuple[Float64, float]:
    """`states` [n, d_model] after the operation at `layer`, at every position; and how near the feature comes to where
    it begins to fire, in spreads."""
    row = layers_of(entry, files)[layer]
    unit = row / np.sqrt((row * row).sum())
    value, nearest = coefficients(entry, files)[layer], np.inf
    match entry["op"]:
        case "add":
            after = states + value * row
        case "ablate":
            after = states - value * (states @ unit)[:, None] * unit
        case "set":
            after = states + (value - states @ unit)[:, None] * unit
        case "cap":
            low, high = bounds(entry, files)[layer]
            component = states @ unit
            after = states + value * (np.clip(component, low, high) - component)[:, None] * unit
        case "clamp" | "min_clamp":
            # The SAE's own reconstruction with the feature at its new activation, in the place of that without.
            w = {name: tensor.astype(np.float64) for name, tensor in files.sae.items()}
            read = (states - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
            active = np.where(read > w["threshold"], read, 0.0)
            wanted = active.copy()
            wanted[:, FEATURE] = value if entry["op"] == "clamp" else np.maximum(active[:, FEATURE], value)
            after = states + ((wanted @ w["W_dec"] + w["b_dec"]) - (active @ w["W_dec"] + w["b_dec"]))
            spread = np.linalg.norm(states, axis=1).mean() / np.sqrt(len(row)) * np.linalg.norm(w["W_enc"][:, FEATURE])
            nearest = float(np.abs(read - w["threshold"])[:, FEATURE].min() / spread)
    if entry.get("preserve_norm"):
        after *= (np.linalg.norm(states, axis=1) / np.linalg.norm(after, axis=1))[:, None]
    return after, nearest


class ByHand:
    """A model of Hugging Face, with the edit made in a hook on each block."""

    def __init__(self, model: Any, files: Files) -> None:
        self._model = model
        self._files = files

    def run(self, prompt: Sequence[int], generated: Sequence[int], entry: Mapping[str, Any]) -> Outcome:
        """Teacher-forced, under one entry of `steering`."""
        asked = selected(entry["positions"], len(prompt), len(prompt) + len(generated))
        gate = entry.get("gate")
        if gate is None or gate["scope"] == "token":
            return _Pass(self._model, self._files, [*prompt, *generated], entry, asked).run(len(prompt), gate)
        # Up to the first position that meets the condition, that one included, nothing is edited.
        plain = _Pass(self._model, self._files, [*prompt, *generated], entry, asked & False)
        plain.run(len(prompt), None)
        met, nearest = beyond(gate, plain.logits[gate["probe"]], self._files)
        # The last generated token is never fed back, so what it would meet does not count; nothing is behind it anyway.
        numbers, found = np.arange(len(asked)), np.flatnonzero(met)
        opened = (numbers > found[0]) & (numbers >= len(prompt)) if len(found) else asked & False
        edited = _Pass(self._model, self._files, [*prompt, *generated], entry, asked & opened)
        edited.nearest = nearest
        return edited.run(len(prompt), None)

    def unedited(self, prompt: Sequence[int], generated: Sequence[int]) -> Outcome:
        """The same without any edit."""
        nowhere = np.zeros(len(prompt) + len(generated), dtype=np.bool_)
        return _Pass(self._model, self._files, [*prompt, *generated], {}, nowhere).run(len(prompt), None)


class _Pass:
    """One forward pass. logits: of every probe as read so far; acts: where the edit acts."""

    def __init__(self, model: Any, files: Files, tokens: list[int], entry: Mapping[str, Any], acts: Mask) -> None:
        self._model, self._files, self._tokens, self._entry = model, files, tokens, entry
        self.acts, self.nearest = acts, np.inf
        self.logits = {name: np.full(len(tokens), float(tensors["bias"][0])) for name, tensors in files.probes.items()}

    @torch.inference_mode()
    def run(self, n_prompt: int, gate: Mapping[str, Any] | None) -> Outcome:
        """gate: of scope token, closed wherever its probe's score is not beyond."""
        edited = sorted(layers_of(self._entry, self._files)) if self.acts.any() else []

        def hook(layer: int) -> Any:
            def visit(module: Any, args: Any, output: Any) -> Any:
                stream = output[0] if isinstance(output, tuple) else output
                states = stream[0].double().numpy()
                self._read(states, layer)
                if gate is not None and edited[:1] == [layer]:
                    self._close(gate)
                if layer not in edited or not self.acts.any():
                    return output
                after, nearest = changed(states[self.acts], self._entry, layer, self._files)
                self.nearest = min(self.nearest, nearest)
                moved = stream.clone()
                moved[0, torch.from_numpy(self.acts)] = torch.from_numpy(after.astype(np.float32))
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            return visit

        handles = [block.register_forward_hook(hook(n)) for n, block in enumerate(self._model.model.layers)]
        try:
            logits = self._model(torch.tensor([self._tokens])).logits[0].double()
        finally:
            for handle in handles:
                handle.remove()
        logprobs = torch.log_softmax(logits[n_prompt - 1 : -1], dim=-1).numpy()
        return Outcome(logprobs, self.logits["watch"], self.acts, self.nearest)

    def _read(self, states: Float64, layer: int) -> None:
        for name, tensors in self._files.probes.items():
            if f"weight.{layer}" in tensors:
                seen = states - tensors.get(f"mean.{layer}", np.zeros(1)).astype(np.float64)
                seen = seen / tensors.get(f"std.{layer}", np.ones(1)).astype(np.float64)
                self.logits[name] += seen @ tensors[f"weight.{layer}"].astype(np.float64)

    def _close(self, gate: Mapping[str, Any]) -> None:
        met, self.nearest = beyond(gate, self.logits[gate["probe"]], self._files)
        self.acts = self.acts & met
