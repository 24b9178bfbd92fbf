"""Every item of a dataset with its split, score and label, as a probe sees it."""

from collections.abc import Sequence
from typing import Any

from pilothouse.core.serving import ActivationSource
from pilothouse.probing.activation_cache import ActivationCache
from pilothouse.probing.activations import ItemReader, aggregated
from pilothouse.probing.calibration import calibrate
from pilothouse.probing.probe import Probe
from pilothouse.probing.progress import Progress, counter
from pilothouse.probing.splits import splits_of_training, with_splits
from pilothouse.probing.statements import LabelledItem


def score_items(
    source: ActivationSource,
    probe: Probe,
    items: Sequence[LabelledItem],
    *,
    cache: ActivationCache | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """A JSON object an item, in order: id, split, topic, bucket, group, label, text, logit (aggregated), score.

    id: the item's own, or else its number from 0; split: the one of the training where it was on these items, or else
    the item's own or None. ArtefactError when the probe does not fit the model.
    """
    probe.check_fits(source.shape)
    splits = splits_of_training(probe.card, items)
    named = list(items) if splits is None else with_splits(items, splits)
    reader = ItemReader(source, counter(progress, len(items)), cache)
    logits = aggregated(probe, reader.stats(items, [probe])[0])
    scores = calibrate(probe.calibration, logits)
    return [
        {
            "id": item.id or str(i),
            "split": item.split,
            "topic": item.topic,
            "bucket": item.bucket,
            "group": item.group,
            "label": item.label,
            "text": item.transcript,
            "logit": float(logits[i]),
            "score": float(scores[i]),
        }
        for i, item in enumerate(named)
    ]
