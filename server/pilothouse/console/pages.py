"""The files of the console, by the last part of their path."""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

RECORD = "record.html"
"""Shows one record, whose id is the last part of the page's own path: its tokens, coloured by score."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""The `Content-Security-Policy` of all pages: what a model wrote is shown, never run."""

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_NAMES = frozenset({RECORD, "record.js", "record.css"})


class Page(NamedTuple):
    """A file as it is sent."""

    content: bytes
    media_type: str


@cache
def page(name: str) -> Page | None:
    """The file of that name; None when the console has none."""
    if name not in _NAMES:
        return None
    content = files("pilothouse.console").joinpath(name).read_bytes()
    return Page(content, _TYPES[name[name.rindex(".") :]])
