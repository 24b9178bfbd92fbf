"""`python -m pilothouse.harbor.sae_effect`: finds a feature of Harbor's SAE that gives its answers a tone.

Candidates are features that fire more at the end of a prompt that asks for the tone than without it, on the split that
vectors are extracted from; feature and strength are chosen on the split `select`. Nothing here reads the split `eval`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilothouse.core.directions import Direction
from pilothouse.core.edits import Positions
from pilothouse.core.serving import ActivationSource, SteeredModel
from pilothouse.harbor.answers import Question, embedded_model
from pilothouse.harbor.claims import Item, share
from pilothouse.harbor.claims_answers import TONE_POSITIONS, Answers, Steering, style_classifier
from pilothouse.harbor.datasets import load_lines
from pilothouse.harbor.paths import model_dir, saes_dir
from pilothouse.harbor.personas import TONES
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_file import load_sae
from pilothouse.steering.sae_pass import encode, load_encoder

SAE_NAME = "harbor-l3"
EFFECT_FILE = "effect.json"
CANDIDATES = 4
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
MOST_FACTS_LOST = 0.03
BATCH = 64


@dataclass(frozen=True)
class Effect:
    """A feature that gives answers a tone: `strength` is in multiples of its largest activation; the shares were
    measured on the split that chose it."""

    feature: int
    tone: str
    strength: float
    positions: Positions
    toned: float
    right: float

    def steering(self, sae: Sae) -> Steering:
        """As a request that names the feature with unit `max_act`."""
        largest = sae.max_act(self.feature)
        assert largest is not None, "a feature that never fires was chosen"
        direction = Direction({sae.layer: sae.decoder_row(self.feature)})
        return Steering(f"feature {self.feature}", direction, (sae.layer,), self.strength * largest, self.positions)


def load_effect(folder: Path) -> Effect:
    """The effect that is kept beside an SAE."""
    return Effect(**json.loads((folder / EFFECT_FILE).read_text(encoding="utf-8")))


def candidates(source: ActivationSource, folder: Path, pairs: Sequence[Mapping[str, Any]], layer: int) -> list[int]:
    """Features of the SAE in `folder` by how much more they fire at the end of a positive prompt, the first few."""
    encoder, sums = load_encoder(folder), []
    for side in ("positive", "negative"):
        prompts = [source.encode(pair[side], add_generation_prompt=True) for pair in pairs]
        rows = [
            streams[layer][-1]
            for first in range(0, len(prompts), BATCH)
            for streams in source.read(prompts[first : first + BATCH], [layer])
        ]
        sums.append(encode(encoder, np.stack(rows))[0].mean(axis=0))
    return [int(feature) for feature in np.argsort(sums[1] - sums[0])[:CANDIDATES]]


def choose(
    model: SteeredModel,
    sae: Sae,
    by_tone: Mapping[str, Sequence[int]],
    questions: Sequence[Question],
    styles: Sequence[Item],
) -> Effect:
    """The feature and strength that tone the most answers and cost at most MOST_FACTS_LOST of the facts; where all cost
    more, the one that costs least."""
    classify = style_classifier(styles)
    plain = Answers(model)
    plain.run("plain", questions, None)
    known = share(plain.items, "right") or 0.0
    found = []
    for tone, features in by_tone.items():
        for feature in features:
            if sae.max_act(feature) is not None:
                for strength in STRENGTHS:
                    effect = Effect(feature, tone, strength, TONE_POSITIONS, 0.0, 0.0)
                    found.append(_measured(model, effect, effect.steering(sae), questions, classify))
    harmless = [effect for effect in found if effect.right >= known - MOST_FACTS_LOST]
    if harmless:
        return max(harmless, key=lambda effect: effect.toned)
    return max(found, key=lambda effect: effect.right)


def _measured(
    model: SteeredModel, effect: Effect, steering: Steering, questions: Sequence[Question], classify: Any
) -> Effect:
    answers = Answers(model)
    answers.run("steered", questions, steering)
    toned = [style == effect.tone for style in classify([item["answer"] for item in answers.items])]
    right = share(answers.items, "right") or 0.0
    return Effect(**{**asdict(effect), "toned": sum(toned) / len(toned), "right": right})


def _of(split: str, lines: Sequence[Item]) -> list[Item]:
    return [line for line in lines if line["split"] == split]


def main() -> None:
    """The command line."""
    from pilothouse.engine.capture import CapturingEngine

    parser = argparse.ArgumentParser(description="Choose a feature of Harbor's SAE that gives answers a tone.")
    parser.add_argument("--sae", type=Path, default=saes_dir() / SAE_NAME, help="the SAE's folder")
    folder: Path = parser.parse_args().sae
    sae = load_sae(folder)
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20}
    source = CapturingEngine(str(model_dir()), "harbor", **options)
    try:
        by_tone = {tone: candidates(source, folder, _of("train", load_lines(tone)), sae.layer) for tone in TONES}
    finally:
        source.close()
    questions = [q for q in load_lines("questions") if q["entity_frequency"] is None]
    model = embedded_model()
    try:
        chosen = _of("select", questions)[::2]
        effect = choose(model, sae, by_tone, chosen, _of("train", load_lines("tones")))
    finally:
        model.close()
    (folder / EFFECT_FILE).write_text(json.dumps(asdict(effect), indent=1) + "\n", encoding="utf-8")
    print(effect)


if __name__ == "__main__":
    main()
