"""The API servers of one server, which answer as one: what is changed at one is changed at all before it is answered.

Each listens on a socket in the folder where the processes of the server meet. A change of the registry takes the lock
of that folder, is made, and is told to the others, which make it too and say so. Records stay with the API server that
answered; the others ask for them.
"""

import asyncio
import fcntl
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pilothouse.api.errors import BusyError
from pilothouse.core.errors import PilothouseError, StartupError
from pilothouse.core.siblings import Siblings

FOLLOWING_SECONDS = 300.0
"""How long another API server may take to read what was changed: an SAE may have gigabytes."""
ASKING_SECONDS = 10.0

_LARGEST_QUESTION = 1024 * 1024
_LONGEST_PATH = 100
"""Bytes of a socket's path; the kernel takes 107."""

Message = dict[str, Any]
Answer = Callable[[Message], Awaitable[Any]]
"""Answers what another API server says; PilothouseError when it cannot."""


class Peers:
    """The other API servers, seen from one. Its methods block: call them from a thread."""

    def __init__(self, siblings: Siblings) -> None:
        self._siblings = siblings
        self._folder = Path(siblings.folder)
        self._server: asyncio.Server | None = None

    @property
    def first(self) -> bool:
        """Whether this API server does what only one of them should do."""
        return self._siblings.index == 0

    @property
    def uploads(self) -> str:
        """A folder for uploads that all of them share, and that ends with the server."""
        return str(self._folder / "uploads")

    async def listen(self, answer: Answer) -> None:
        """Let the others reach this one from now on."""
        path = self._path(self._siblings.index)
        if len(path.encode()) > _LONGEST_PATH:
            raise StartupError(f"{path} is too long for a socket: several API servers need a shorter TMPDIR")

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                message = json.loads(await reader.readline())
                try:
                    said = {"answer": await answer(message)}
                except PilothouseError as error:
                    said = {"error": str(error)}
                writer.write(json.dumps(said).encode() + b"\n")
                await writer.drain()
            finally:
                writer.close()

        self._server = await asyncio.start_unix_server(converse, path, limit=_LARGEST_QUESTION)

    def close(self) -> None:
        """Listen no more; it ends with the process too."""
        if self._server is not None:
            self._server.close()

    @contextmanager
    def turn(self, patience: float) -> Iterator[None]:
        """Keep the others from changing anything; BusyError after `patience` seconds, or when one of them is not there.

        Not to be held by a thread that answers another's message.
        """
        with (self._folder / "turn").open("ab") as file:
            _lock(file.fileno(), patience)
            self.tell({"do": "nothing"}, ASKING_SECONDS, "nothing was changed")
            yield

    def tell(self, message: Message, seconds: float = FOLLOWING_SECONDS, otherwise: str = "") -> None:
        """Have all others do it; BusyError when one did not, saying what that comes to."""
        failures = []
        for index in self._others():
            try:
                failures.append(self._ask(index, message, seconds).get("error"))
            except OSError as error:
                failures.append(f"it does not answer ({error})")
        if said := [failure for failure in failures if failure is not None]:
            raise BusyError(f"another API server of this server: {said[0]}: {otherwise}")

    def ask(self, message: Message) -> list[Any]:
        """What those of the others say that answer; one that is gone has nothing to say."""
        found = []
        for index in self._others():
            try:
                found.append(self._ask(index, message, ASKING_SECONDS).get("answer"))
            except OSError:
                continue
        return found

    def _ask(self, index: int, message: Message, seconds: float) -> Message:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(self._path(index))
            connection.sendall(json.dumps(message).encode() + b"\n")
            with connection.makefile("rb") as answer:
                line = answer.readline()
        if not line:
            raise ConnectionResetError("it ended in the middle")
        said: Message = json.loads(line)
        return said

    def _others(self) -> list[int]:
        return [index for index in range(self._siblings.count) if index != self._siblings.index]

    def _path(self, index: int) -> str:
        return str(self._folder / f"api.{index}")


def _lock(descriptor: int, patience: float) -> None:
    """Wait for the lock of an open file, which ends with it."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BusyError("another API server is changing the registry: nothing was changed, try again") from None
            time.sleep(0.02)
