"""One API server among several of one server: the launcher says which, in the environment of its process."""

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Self

SIBLINGS_ENV = "PILOTHOUSE_SIBLINGS"


@dataclass(frozen=True)
class Siblings:
    """folder: where the processes of this server meet, gone when it ends; index: of this process's API server among
    the `count` that there are."""

    folder: str
    index: int
    count: int

    def to_environment(self) -> None:
        """Leave this for the API server of this process."""
        os.environ[SIBLINGS_ENV] = json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_environment(cls) -> Self | None:
        """What the launcher left; None for an only child."""
        text = os.environ.get(SIBLINGS_ENV)
        return None if text is None else cls(**json.loads(text))
