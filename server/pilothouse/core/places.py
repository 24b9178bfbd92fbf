"""Where artefacts lie: a path on this machine, or ``hf://org/repo[@revision][/path/inside]`` on the Hugging Face hub.

What is on the hub is fetched into the hub's own cache (HF_HOME) and read from there; with HF_HUB_OFFLINE=1 nothing is
fetched and the cache must have it.
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pilothouse.core.errors import ArtefactError

HUB = "hf://"

WANTED = ("*.safetensors", "*.npz", "*.pt", "*.pth", "*.json", "*.gguf", "*.svec", "*probe_head.bin")
"""What is fetched of a repository: the formats that are read here, and nothing else that may lie beside them."""

_PLACE = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<inside>.*))?")


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


def local_path(place: str) -> Path:
    """`place` as a path on this machine, fetched into the hub's cache where it is on the hub.

    ArtefactError when the hub or its cache does not have it. A path on this machine is returned as it is, there or not.
    """
    if not is_on_hub(place):
        return Path(place)
    wanted = HubPlace.parse(place)
    path = _snapshot(wanted) / wanted.inside
    if not path.exists():
        from huggingface_hub import constants

        where = "the cached copy of the repository" if constants.HF_HUB_OFFLINE else "the repository"
        inside = f" under {wanted.inside!r}" if wanted.inside else ""
        raise ArtefactError(f"{wanted}: {where} has nothing{inside} that is read here ({', '.join(WANTED)})")
    return path


def _snapshot(place: HubPlace) -> Path:
    # Not at the top: the import takes a second and most starts do not need it.
    import httpx
    from huggingface_hub import constants, errors, snapshot_download

    revision = place.revision or constants.DEFAULT_REVISION
    # Without the word, a commit that is in the cache is still looked up on the hub.
    offline = constants.HF_HUB_OFFLINE
    try:
        return Path(
            snapshot_download(place.repo, revision=revision, allow_patterns=place.patterns, local_files_only=offline)
        )
    except errors.GatedRepoError:
        reason = "the repository is gated: accept its terms on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private and HF_TOKEN does not open it"
    except errors.RevisionNotFoundError:
        reason = f"the repository has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub did not answer"
        reason = f"{why}, and revision {revision!r} is not whole in the cache ({constants.HF_HUB_CACHE})"
    except errors.HFValidationError as error:
        reason = str(error)
    except (OSError, httpx.HTTPError) as error:
        reason = f"it could not be fetched: {str(error).strip() or type(error).__name__}"
    raise ArtefactError(f"{place}: {reason}")
