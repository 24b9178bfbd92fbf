"""What goes wrong with the URL of a place, told in one line and without the secrets that the URL may hold."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from pilothouse.core.errors import ArtefactError

_LONGEST = 300

_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/\s]*)@")
_QUERY = re.compile(r"(?P<before>https?://[^\s?'\"]*)\?(?:(?!::)[^\s'\"])*")

_NO_SECRETS = frozenset({"abfs", "abfss", "az", "git", "github"})
"""Here a container, a folder or a repository stands before the ``@``; only what follows a colon may be a secret."""


def masked(text: str) -> str:
    """`text` with the users, passwords and queries of the URLs in it as ``***``: signed URLs have their key there."""
    return _QUERY.sub(r"\g<before>?***", _USER.sub(_masked_user, text))


@contextmanager
def told_of(url: str) -> Iterator[None]:
    """Any error within, of whatever file system, as an ArtefactError that names `url` and the reason."""
    try:
        yield
    except ArtefactError:
        raise
    # Every file system brings errors of its own, whose packages need not be installed: they have no other base.
    except Exception as error:
        _forget(url)
        # The cause would show the URL as it is.
        raise ArtefactError(f"{masked(url)}: {_reason(error, url)}") from None


def _masked_user(match: re.Match[str]) -> str:
    user = match["user"]
    if match["scheme"].lower() in _NO_SECRETS:
        name, colon, secret = user.partition(":")
        user = name + colon + "***" * bool(secret)
    else:
        user = "***"
    return f"{match['scheme']}://{user}@"


def _reason(error: BaseException, url: str) -> str:
    # HTTP file systems say of every failure that the file is missing, and have the true reason as its cause.
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        return _reason(error.__cause__, url)
    said = masked(" ".join(str(error).split()))
    for secret in _secrets(url):
        said = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", said)
    said = said[:_LONGEST]
    if isinstance(error, ImportError):
        return f"a package for this file system is missing: {said}"
    if isinstance(error, FileNotFoundError):
        return f"there is no such file or folder ({said})"
    if isinstance(error, PermissionError):
        return f"access is refused ({said})"
    return f"it could not be fetched: {type(error).__name__}{': ' * bool(said)}{said}"


def _secrets(url: str) -> list[str]:
    """The passwords in `url`, and users that have none, which may be tokens: as they are and unquoted."""
    users = [match["user"] for match in _USER.finditer(url) if match["scheme"].lower() not in _NO_SECRETS]
    found = [secret for user in users if (secret := user.partition(":")[2] or user)]
    return [*found, *map(unquote, found)]


def _forget(url: str) -> None:
    """Drop the file systems that fsspec keeps: a connection that broke would fail at every later attempt too."""
    from fsspec.registry import registry

    for link in url.split("::"):
        kept = registry.get(link.split("://", 1)[0])
        if kept is not None:
            kept.clear_instance_cache()
