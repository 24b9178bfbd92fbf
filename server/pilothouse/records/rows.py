"""From a finished request to the rows that are stored of it."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from pilothouse.core.listing import json_of
from pilothouse.core.record_body import record_body, without_words
from pilothouse.core.records import RequestOutcome
from pilothouse.records.redaction import Redaction
from pilothouse.records.schema import BODY_FORMAT

LONGEST_NAME = 512
"""Characters of a name that are stored outside of the record itself: an index takes no more than some 2700 bytes."""

_KEPT_OF_LONG = 200
_HARD = re.compile("[\x00\\\\\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """response: values of the table of responses, but for the batch; scores: of the table of scores, but for the
    record that they belong to."""

    response: dict[str, Any]
    scores: tuple[dict[str, Any], ...]

    @property
    def size(self) -> int:
        """Bytes of the record."""
        return int(self.response["size"])


def storable(name: str) -> str:
    """`name` as both databases take it, different for different names: PostgreSQL has no NUL, UTF-8 no lone surrogates,
    and what is very long cannot be found again."""
    if _HARD.search(name):
        name = name.encode("unicode_escape").decode("ascii")
    if len(name) > LONGEST_NAME:
        name = f"{name[:_KEPT_OF_LONG]}…{hashlib.sha256(name.encode()).hexdigest()}"
    return name


def make_row(outcome: RequestOutcome, redaction: Redaction | None = None) -> Row:
    """The rows of one request; ValueError or TypeError when its record is no JSON. redaction: None keeps no texts. What
    tokens were is a text too: it is kept only where texts are kept as they are."""
    record = record_body(outcome)
    # It depends on what else is stored when the record is read.
    del record["replaced"]
    if redaction is not None:
        record |= redaction(outcome.text)
    if redaction is None or not redaction.keeps_all:
        record["choices"] = [
            {**choice, "probes": without_words(choice["probes"])} if "probes" in choice else choice
            for choice in record["choices"]
        ]
    body = as_json(record)
    response = {
        "response_id": storable(outcome.response_id),
        "time": outcome.created,
        "model": storable(outcome.model_name),
        "route": storable(outcome.route),
        "steering": storable(outcome.steering),
        "flagged": outcome.flagged,
        "error": None if outcome.error is None else storable(outcome.error),
        "trace_id": record["trace_id"],
        "seconds": outcome.seconds,
        "size": len(body.encode()),
        "format": BODY_FORMAT,
        "body": body,
    }
    return Row(response, _score_rows(outcome))


def as_json(value: Any) -> str:
    """Compact JSON without NUL, which JSON escapes anyway, and without lone surrogates."""
    try:
        return json_of(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=list)


def _score_rows(outcome: RequestOutcome) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "choice": index,
            "number": number,
            "probe": storable(probe.probe),
            "version": storable(probe.version),
            "score": probe.score,
            "prompt_end": probe.prompt_end,
            "statistic": probe.statistic,
            "flagged": probe.flagged,
            "level": None if probe.level is None else storable(probe.level),
            "reason": None if probe.reason is None else storable(probe.reason),
            "n_scored": probe.n_scored,
            "n_expected": probe.n_expected,
        }
        for index, choice in enumerate(outcome.choices)
        for number, probe in enumerate(choice.probes)
    )
