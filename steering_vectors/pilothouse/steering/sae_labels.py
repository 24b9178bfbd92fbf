"""Names for the features of an SAE whose strongest examples have something in common, and the file they are kept in."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pilothouse.core.artefact import parse_json, read_artefact
from pilothouse.core.errors import ArtefactError
from pilothouse.steering.reading import Progress
from pilothouse.steering.sae_examples import Decode, Example, ExampleReader, TopRows
from pilothouse.steering.sae_store import RowStore
from pilothouse.steering.sae_texts import SaeText

LABELS = "labels.json"
PURITY = 0.8
FEWEST_EXAMPLES = 3
LIFT = 2.0

Rule = Literal["token", "previous_word", "metadata"]


@dataclass(frozen=True)
class Shared:
    """What `purity` (a share) of a feature's examples have in common: `value`, by `rule`; `key`: of the metadata."""

    rule: Rule
    key: str | None
    value: str
    purity: float

    @property
    def name(self) -> str:
        match self.rule:
            case "token":
                return f'token "{self.value}"'
            case "previous_word":
                return f'after "{self.value}"'
            case "metadata":
                return f"{self.key} = {self.value}"


@dataclass(frozen=True)
class Labelled:
    """One feature: `fired` tokens of all at which it is active, its examples, and what they share, if anything."""

    feature: int
    fired: int
    frequency: float
    max_act: float
    shared: Shared | None
    examples: list[Example]

    @property
    def card(self) -> dict[str, Any]:
        found = None if self.shared is None else asdict(self.shared)
        facts = {"feature": self.feature, "name": None if self.shared is None else self.shared.name, "shared": found}
        counts = {"fired": self.fired, "frequency": self.frequency, "max_act": self.max_act}
        return {**facts, **counts, "examples": [asdict(example) for example in self.examples]}


def label_features(
    found: TopRows,
    store: RowStore,
    texts: Sequence[SaeText],
    decode: Decode,
    purity: float = PURITY,
    progress: Progress | None = None,
) -> list[Labelled]:
    """Every feature that fires, by number. `texts` are those that the store was filled with."""
    base, reader = _base_rates(store, texts), ExampleReader(store, decode)
    labelled: list[Labelled] = []
    firing = np.flatnonzero(found.fired)
    for feature in firing:
        examples = reader.examples(found, int(feature))
        metadata = [texts[example.text].metadata for example in examples]
        labelled.append(
            Labelled(
                feature=int(feature),
                fired=int(found.fired[feature]),
                frequency=float(found.fired[feature] / store.n_rows),
                max_act=float(found.acts[feature, 0]),
                shared=shared_by(examples, metadata, base, purity),
                examples=examples,
            )
        )
        if progress:
            progress(len(labelled), len(firing))
    return labelled


def shared_by(
    examples: Sequence[Example],
    metadata: Sequence[Mapping[str, str]],
    base: Mapping[tuple[str, str], float],
    purity: float = PURITY,
) -> Shared | None:
    """The first of these that at least a share `purity` of the examples, each of another text, have in common: the
    token (but for white space around it), the word before it, the value of a metadata field.

    A metadata value counts only if it is at least twice as frequent here as among all tokens (`base`): what holds
    nearly everywhere names nothing. Of several fields the one that is most so. Fewer than three examples share nothing.
    """
    if len(examples) < FEWEST_EXAMPLES:
        return None
    tokens = [example.token.strip() for example in examples]
    words = [example.previous_word for example in examples]
    rules: tuple[tuple[Rule, list[str]], ...] = (("token", tokens), ("previous_word", words))
    for rule, values in rules:
        value, share = _commonest(values)
        if value and share >= purity:
            return Shared(rule, None, value, share)
    best: tuple[float, Shared] | None = None
    for key in sorted({key for of_text in metadata for key in of_text}):
        value, share = _commonest([of_text.get(key, "") for of_text in metadata])
        lift = share / base.get((key, value), 1.0)
        if value and share >= purity and lift >= LIFT and (best is None or lift > best[0]):
            best = lift, Shared("metadata", key, value, share)
    return None if best is None else best[1]


def write_labels(folder: Path, card: Mapping[str, Any], labelled: Sequence[Labelled]) -> dict[str, Any]:
    """Write ``labels.json`` beside the weights, and return its content: `card` (what was read, and how) and a list
    `features` of those that fired."""
    content = {"format": 1, "kind": "sae_labels", **card, "features": [feature.card for feature in labelled]}
    partial = folder / f"{LABELS}.partial"
    partial.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / LABELS)
    return content


def read_labels(folder: Path) -> dict[str, Any] | None:
    """The content of ``labels.json``, or None when the folder has none; ArtefactError for another kind of file."""
    path = folder / LABELS
    if not path.exists():
        return None
    content = parse_json(read_artefact(path))
    if not isinstance(content, dict) or content.get("kind") != "sae_labels" or content.get("format") != 1:
        raise ArtefactError(f"{path} does not hold the labels of an SAE")
    return content


def _commonest(values: Sequence[str]) -> tuple[str, float]:
    value, count = Counter(values).most_common(1)[0]
    return value, count / len(values)


def _base_rates(store: RowStore, texts: Sequence[SaeText]) -> dict[tuple[str, str], float]:
    """The share of the store's tokens whose text has each metadata value."""
    counts: Counter[tuple[str, str]] = Counter()
    for text in store.texts:
        for field in texts[text.number].metadata.items():
            counts[field] += text.stop - text.start
    return {field: count / store.n_rows for field, count in counts.items()}
