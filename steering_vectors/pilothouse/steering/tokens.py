"""Which token of an item its activations are taken at."""

import re
from typing import Literal

from pilothouse.core.errors import ArtefactError
from pilothouse.core.items import Item, Reading

Token = Literal["last", "mean", "prompt_end"] | int
"""last: the last token that is meant (of a chat's answer, without the template around it); mean: the mean over the
tokens that are meant; prompt_end: the token that predicts the answer's first one; -1, -2, ...: counted back from the
end of what is meant, -1 being `last`, and on into the prompt."""


def parse_token(text: str) -> Token:
    """A token choice as a command line gives it; ArtefactError when it is none."""
    match text:
        case "last" | "mean" | "prompt_end":
            return text
    if re.fullmatch(r"-[1-9][0-9]{0,8}", text):
        return int(text)
    raise ArtefactError(f"a token is last, mean, prompt_end or a number from the end (-1, -2, ...), not {text!r}")


def chosen_tokens(reading: Reading, item: Item, token: Token, what: str) -> slice:
    """The tokens of one item that `token` means; ArtefactError, naming the item as `what`, when it has none such."""
    match token:
        case "mean":
            return slice(reading.start, reading.stop)
        case "last":
            return slice(reading.stop - 1, reading.stop)
        case "prompt_end":
            position = _prompt_end(reading, item, what)
        case _:
            position = reading.stop + token
    # Position 0 is BOS or the attention sink that stands in for it.
    if position < 1:
        raise ArtefactError(f"{what} is too short for token {token}: it has {reading.stop} tokens, the first is BOS")
    return slice(position, position + 1)


def _prompt_end(reading: Reading, item: Item, what: str) -> int:
    if isinstance(item, str):
        raise ArtefactError(f"{what} is a text: only chats have a prompt_end")
    return reading.start - 1 if item[-1].role == "assistant" else reading.stop - 1
