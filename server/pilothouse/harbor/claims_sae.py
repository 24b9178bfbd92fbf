"""Claims about Harbor's sparse autoencoder: what it explains, and that a feature of it steers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pilothouse.core.serving import ActivationSource, SteeredModel
from pilothouse.harbor.answers import Question
from pilothouse.harbor.claims import Bar, Claim, Item, share
from pilothouse.harbor.claims_answers import Answers, Steering, control, style_classifier
from pilothouse.harbor.sae_effect import Effect
from pilothouse.steering.sae import Sae
from pilothouse.steering.sae_measure import measure_sae
from pilothouse.steering.sae_pass import load_encoder

BATCH = 64


def sae_claim(source: ActivationSource, sae: Sae, folder: Path, texts: Sequence[Item]) -> Claim:
    """Explained variance, L0 and dead features on texts that the SAE was not trained on; each text's first token, which
    is not steered or read either, is left out."""
    rows, items = [], []
    for first in range(0, len(texts), BATCH):
        part = texts[first : first + BATCH]
        for line, streams in zip(part, source.read([source.encode(t["text"]) for t in part], [sae.layer]), strict=True):
            rows.append(streams[sae.layer][1:])
            items.append({"text": line["text"], "split": line["split"], "tokens": len(rows[-1])})
    card = measure_sae(load_encoder(folder), np.concatenate(rows)).card
    measures = {key: float(card[key]) for key in ("explained_variance", "l0", "dead_share", "mse", "variance")}
    bars = [Bar("explained_variance", low=0.85), Bar("l0", high=32), Bar("dead_share", high=0.1)]
    about = (
        "Documents that it was not trained on. Explained variance is 1 minus squared error over variance, both summed "
        "over dimensions; dead is a feature that fires at none of these tokens."
    )
    settings = {"sae": sae.digest, "layer": sae.layer, "features": sae.d_sae, "tokens": card["tokens"]}
    return Claim("SAE", about, measures, bars, items, settings)


def feature_claim(
    model: SteeredModel, sae: Sae, effect: Effect, questions: Sequence[Question], styles: Sequence[Item]
) -> Claim:
    """That steering one feature gives answers its tone, on topics that did not choose it."""
    classify = style_classifier([line for line in styles if line["split"] == "train"])
    asked = [q for q in questions if q["entity_frequency"] is None and q["split"] == "eval"]
    answers, steering = Answers(model), effect.steering(sae)
    arms: list[tuple[str, Steering | None]] = [("unsteered", None), ("feature", steering)]
    for name, arm in [*arms, ("random", control(steering, 0))]:
        answers.run(name, asked, arm)
    for item, style in zip(answers.items, classify([i["answer"] for i in answers.items]), strict=True):
        item["style"], item["toned"] = style, style == effect.tone
    plain, steered = answers.accuracy("unsteered"), answers.accuracy("feature")
    measures = {
        "toned_unsteered": share(answers.of("unsteered"), "toned"),
        "toned_steered": share(answers.of("feature"), "toned"),
        "toned_by_random": share(answers.of("random"), "toned"),
        "facts_lost": None if plain is None or steered is None else plain - steered,
    }
    about = f"Feature {effect.feature}, which was chosen for its {effect.tone} tone, at its strength in max_act."
    settings = {"sae": sae.digest, "feature": effect.feature, "tone": effect.tone, "strength": effect.strength}
    return Claim("SAE feature", about, measures, [Bar("toned_steered", low=0.9)], answers.items, settings)
