"""The page that Prometheus scrapes, in the format it asks for."""

import gzip
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

_GZIP = re.compile(r"(?:^|[\s,])gzip(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)
_OLD_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass(frozen=True)
class Page:
    """What is answered."""

    body: bytes
    headers: dict[str, str]


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(metrics: Collector, accept: str = "", accept_encoding: str = "") -> Page:
    """Everything that `metrics` shows: as OpenMetrics, with exemplars, where the header Accept asks for that, else as
    text; compressed where the other header allows it."""
    families = list(metrics.collect())
    encode, content_type = choose_encoder(accept)
    if isinstance(encode, partial) and all(_OLD_NAME.fullmatch(family.name) for family in families):
        # Else prometheus_client writes `_` for the colons of vLLM's names in OpenMetrics, which allows colons, and a
        # server's metrics would have other names according to who scrapes them.
        encode = partial(encode, escaping="allow-utf-8")
    body = encode(_Collected(families))
    headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
    if _GZIP.search(accept_encoding):
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    return Page(body, headers)
