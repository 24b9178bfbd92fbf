"""From labelled characters to labelled tokens."""

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Reading
from pilothouse.core.serving import ActivationSource, TokenLocator
from pilothouse.probing.statements import LabelledItem


def token_labels(source: ActivationSource, item: LabelledItem, reading: Reading) -> dict[int, int]:
    """Label by position of the tokens of `item` that its spans cover and that a server would score.

    A token is a span's when they share a character that is not white space (a token of white space alone: any
    character): the leading space of " Paris" says nothing about where "Paris" begins. A token that belongs to spans of
    both labels has label 1. ArtefactError when the source cannot tell which characters a token stands for.
    """
    if not isinstance(source, TokenLocator):
        raise ArtefactError("labels by token need a tokenizer that tells which characters a token stands for")
    item_as_sent = item.item if isinstance(item.item, str) else [message.model_dump() for message in item.item]
    offsets = source.offsets(item_as_sent)
    if len(offsets) != len(reading.token_ids):
        raise ArtefactError(f"the tokenizer gives {len(offsets)} places for {len(reading.token_ids)} tokens")
    found: dict[int, int] = {}
    for position in range(reading.start, reading.stop):
        start, stop = _trimmed(item.labelled_text, *offsets[position])
        labels = [span.label for span in item.spans if span.start < stop and start < span.stop]
        if labels:
            found[position] = max(labels)
    return found


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """[start, stop) of `text` without the white space at its ends, unless there is nothing else."""
    piece = text[start:stop]
    if not piece.strip():
        return start, stop
    return start + len(piece) - len(piece.lstrip()), stop - (len(piece) - len(piece.rstrip()))
