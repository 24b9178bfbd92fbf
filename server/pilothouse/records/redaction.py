"""The hook that sees prompts and completions before they are stored, and takes out what must not be."""

import copy
import importlib
import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

from pilothouse.core.errors import StartupError

logger = logging.getLogger(__name__)

FAILED = "redaction failed"

Redact = Callable[[dict[str, Any]], Any]
"""Takes the texts of a request and returns what is to be stored of them, in JSON; None for nothing."""


def load_redaction(name: str) -> Redact:
    """The function that `module:function` names; StartupError when there is none that can be called."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise StartupError(f"--redact takes module:function, not {name!r}")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module may raise anything while it is imported
        raise StartupError(f"--redact {name}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise StartupError(f"--redact {name}: it cannot be called")
    if inspect.iscoroutinefunction(found):
        raise StartupError(f"--redact {name}: it must be a plain function, not an async one")
    redact: Redact = found
    return redact


class Redaction:
    """What records keep of the texts of a request. redact: the hook; None keeps them as they are."""

    def __init__(self, redact: Redact | None = None) -> None:
        self._redact = redact
        self._reported = False

    @property
    def keeps_all(self) -> bool:
        """Whether texts are kept as they are."""
        return self._redact is None

    def __call__(self, text: dict[str, Any] | None) -> dict[str, Any]:
        """Keys for the record. Nothing is kept of a text on which the hook fails."""
        if text is None or self._redact is None:
            return {"text": text}
        try:
            # A copy: the other takers of the request see its texts as they are.
            kept = self._redact(copy.deepcopy(text))
            json.dumps(kept, allow_nan=False)
        except BaseException as error:  # one that wants to end the process may not leave a text as it is either
            self._report(error)
            return {"text": None, "text_error": FAILED}
        return {"text": kept}

    def _report(self, error: BaseException) -> None:
        if not self._reported:
            self._reported = True
            # No more than the type: what the error says may be what was to be taken out.
            name = type(error).__name__
            logger.error("The redaction hook fails with %s: such texts are not kept, and no further ones told of", name)
