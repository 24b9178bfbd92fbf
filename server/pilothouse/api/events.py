"""The text of vLLM's server-sent events: what is found in it without reading all of it, and what is put into it.

Unescaped quotes cannot stand inside a JSON string, so a quoted key that is followed by a colon is a key, never text
that a model wrote.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from pilothouse.core.listing import json_pieces, texts_of

DONE = "data: [DONE]"
ERROR = 'data: {"error"'

PART = 2**16
"""Characters after which an event is sent on. The last event of a stream with many probes has megabytes: as one text it
would be copied three times on its way out, each time to memory that the operating system has to find first."""

_DATA = "data: "
_FINISH_KEY = '"finish_reason":'
_UNFINISHED = '"finish_reason":null'
_LOGPROBS = '"logprobs":{'
_ROLE_KEY = '"role":'

# As vLLM writes a choice that goes on: the number first, and the reason of its end behind its log-probabilities.
_HEAD = re.compile(r'"choices":\[\{"index":(\d+),')
_NEXT = '},{"index":'
_TAIL = '"logprobs":null,"finish_reason":null'

_decode = msgspec.json.Decoder().decode


def tells_finish(event: str) -> bool:
    """Whether it has a choice that says whether it has finished."""
    return _FINISH_KEY in event


def goes_on(event: str) -> bool:
    """Whether every choice in it goes on."""
    return event.count(_FINISH_KEY) == event.count(_UNFINISHED)


def has_logprobs(event: str) -> bool:
    """Whether a choice in it has log-probabilities."""
    return _LOGPROBS in event


def lone_choice(event: str) -> int | None:
    """The number of the only choice in an event all of whose choices go on, as `with_key` takes it; None for a choice
    that is only announced, and wherever all of the event has to be read to know."""
    if event.count(_TAIL) != 1 or event.count(_FINISH_KEY) != 1 or _NEXT in event or _ROLE_KEY in event:
        return None
    head = _HEAD.search(event)
    return None if head is None else int(head[1])


def with_key(event: str, key: str, text: str) -> str:
    """An event that has a `lone_choice`, with one more key in that choice. text: the JSON of its value."""
    at = event.index(_TAIL) + len(_TAIL)
    return f'{event[:at]},"{key}":{text}{event[at:]}'


def read(event: str) -> dict[str, Any]:
    """The JSON of an event; ValueError when it is none."""
    text = event[len(_DATA) :]
    chunk: dict[str, Any]
    try:
        chunk = _decode(text)
    except msgspec.DecodeError:
        # Python's own takes some things that are not quite JSON, such as half a surrogate pair.
        chunk = json.loads(text)
    return chunk


def written(chunk: dict[str, Any]) -> Iterator[str]:
    """The event of `chunk`, in parts that are to be sent one after the other; what is not a finite number is null."""
    return _parts(itertools.chain((_DATA,), _texts(chunk), ("\n\n",)))


def _parts(texts: Iterable[str]) -> Iterator[str]:
    """`texts`, joined to parts of some `PART` characters, each once it is asked for."""
    part: list[str] = []
    length = 0
    for text in texts:
        part.append(text)
        length += len(text)
        if length >= PART:
            yield "".join(part)
            part, length = [], 0
    if part:
        yield "".join(part)


def _texts(value: dict[str, Any]) -> Iterable[str]:
    try:
        return texts_of(json_pieces(value))
    except UnicodeEncodeError:
        return [json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=list)]
