"""Places on the Hugging Face hub: ``hf://org/repo[@revision][/path/inside]``.

What is there is fetched into the hub's own cache (HF_HOME) and read from it; with HF_HUB_OFFLINE=1 nothing is fetched
and the cache must have it.
"""

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from pilothouse.core.errors import ArtefactError
from pilothouse.core.wanted import WANTED

HUB = "hf://"

_PLACE = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<inside>.*))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_PATIENCE = 10.0
"""Seconds that the hub has to say which commit a branch is at."""

T = TypeVar("T")


@dataclass(frozen=True)
class HubPlace:
    """A repository of models on the hub, one of its branches, tags or commits, and a file or folder in it."""

    repo: str
    revision: str | None
    inside: str

    @classmethod
    def parse(cls, text: str) -> "HubPlace":
        """The place that ``hf://...`` means; ArtefactError when it is not of that form."""
        match = _PLACE.fullmatch(text.removeprefix(HUB))
        inside = "/".join(part for part in (match["inside"] or "").split("/") if part) if match else ""
        revision = unquote(match["revision"] or "") if match else ""
        if match is None or {".", ".."} & {*match["repo"].split("/"), *revision.split("/"), *inside.split("/")}:
            raise ArtefactError(f"{text!r} is no place on the hub: write hf://org/repo[@revision][/path/inside]")
        if match["repo"].split("/")[0] in ("datasets", "spaces"):
            raise ArtefactError(f"{text!r}: only repositories of models are read, not datasets or spaces")
        return cls(match["repo"], revision or None, inside)

    @property
    def patterns(self) -> list[str]:
        """What to fetch, in the hub's patterns, whose ``*`` matches ``/`` too."""
        if not self.inside:
            return list(WANTED)
        inside = glob.escape(self.inside)
        return [*([inside] if self._names_file else []), *(f"{inside}/{wanted}" for wanted in WANTED)]

    @property
    def _names_file(self) -> bool:
        return any(self.inside.endswith(wanted.removeprefix("*")) for wanted in WANTED)

    def __str__(self) -> str:
        return f"{HUB}{self.repo}{'@' + self.revision if self.revision else ''}{'/' * bool(self.inside)}{self.inside}"


def is_on_hub(place: str) -> bool:
    """Whether `place` is meant to be on the hub."""
    return place.startswith(HUB)


def hub_path(place: str) -> Path:
    """What ``hf://...`` means as a path in the hub's cache, fetched where need be.

    ArtefactError when the hub or its cache does not have it.
    """
    wanted = HubPlace.parse(place)
    path = _snapshot(wanted) / wanted.inside
    if not path.exists():
        from huggingface_hub import constants

        where = "the cached copy of the repository" if constants.HF_HUB_OFFLINE else "the repository"
        inside = f" under {wanted.inside!r}" if wanted.inside else ""
        raise ArtefactError(f"{wanted}: {where} has nothing{inside} that is read here ({', '.join(WANTED)})")
    return path


def hub_commit(place: str) -> str:
    """The commit that ``hf://...`` is at now: one small request, none when offline or when the place names a commit.

    ArtefactError when the hub does not say, or when offline and the cache does not have it.
    """
    from huggingface_hub import HfApi, constants

    wanted = HubPlace.parse(place)
    if wanted.revision is not None and _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    if constants.HF_HUB_OFFLINE:
        return _snapshot(wanted).name
    revision = wanted.revision or constants.DEFAULT_REVISION
    api = HfApi()
    found = _asked(wanted, lambda: api.repo_info(wanted.repo, revision=revision, timeout=_PATIENCE, expand=["sha"]))
    return str(found.sha)


def _snapshot(place: HubPlace) -> Path:
    from huggingface_hub import constants, snapshot_download

    # Without the word, a commit that is in the cache is still looked up on the hub.
    offline = constants.HF_HUB_OFFLINE
    revision = place.revision or constants.DEFAULT_REVISION
    return Path(
        _asked(
            place,
            lambda: snapshot_download(
                place.repo, revision=revision, allow_patterns=place.patterns, local_files_only=offline
            ),
        )
    )


def _asked(place: HubPlace, ask: Callable[[], T]) -> T:
    # Not at the top: the import takes a second and most starts do not need it.
    import httpx
    from huggingface_hub import constants, errors

    revision = place.revision or constants.DEFAULT_REVISION
    try:
        return ask()
    except errors.GatedRepoError:
        reason = "the repository is gated: accept its terms on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private and HF_TOKEN does not open it"
    except errors.RevisionNotFoundError:
        reason = f"the repository has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub did not answer"
        reason = f"{why}, and revision {revision!r} is not whole in the cache ({constants.HF_HUB_CACHE})"
    except errors.HFValidationError as error:
        reason = str(error)
    except (OSError, httpx.HTTPError) as error:
        reason = f"it could not be fetched: {str(error).strip() or type(error).__name__}"
    raise ArtefactError(f"{place}: {reason}")
