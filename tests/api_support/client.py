"""What tests say to a server, and the pieces of what it answers."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from api_support.artefacts import ADMIN, D_MODEL
from api_support.fake_engine import CHAT, COMPLETIONS, FakeServer

PROMPT = "Where is Oslo?"
N_PROMPT = 1 + len(PROMPT)
HEADERS = {"Authorization": f"Bearer {ADMIN}"}


def no_constant(text: str) -> Any:
    raise AssertionError(f"{text} in JSON")


def strict_json(text: str | bytes) -> Any:
    """JSON by the letter: NaN and infinities fail the test."""
    return json.loads(text, parse_constant=no_constant)


def b64(values: Any) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


ONES = b64(np.ones(D_MODEL))
HONEST = {"vector": "honest"}
INLINE = {"inline": {"layers": {"3": ONES}}}


@dataclass
class Client:
    """Requests to the two OpenAI routes."""

    http: httpx.AsyncClient

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.http.post(CHAT, json={"messages": [{"role": "user", "content": PROMPT}], **body})

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.http.post(COMPLETIONS, json={"prompt": PROMPT, **body})

    async def choice(self, **body: Any) -> dict[str, Any]:
        """The only choice of a whole chat response."""
        response = await self.chat(**body)
        assert response.status_code == 200, response.text
        (choice,) = strict_json(response.content)["choices"]
        assert isinstance(choice, dict)
        return choice

    async def events(self, **body: Any) -> list[str]:
        """The raw events of a streamed chat."""
        response = await self.chat(stream=True, **body)
        assert response.status_code == 200, response.text
        return [event for event in response.text.split("\n\n") if event]

    async def chunks(self, **body: Any) -> list[dict[str, Any]]:
        """The choices of a streamed chat's chunks, in order."""
        return choices_of(await self.events(**body))


def choices_of(events: list[str]) -> list[dict[str, Any]]:
    assert events[-1] == "data: [DONE]"
    chunks = [strict_json(event.removeprefix("data: ")) for event in events[:-1]]
    assert all(isinstance(chunk["choices"], list) for chunk in chunks)
    return [choice for chunk in chunks for choice in chunk["choices"]]


def assert_refused(response: httpx.Response, param: str | None, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["code"] == status
    assert error["message"]
    assert isinstance(error, dict)
    return error


def connect(server: FakeServer) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(server.app)
    return httpx.AsyncClient(transport=transport, base_url="http://pilothouse")
