"""The console's pages: what they are made of, what they may do, and in a real browser what they show."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from api_support.artefacts import write_all
from api_support.client import Client
from api_support.fake_engine import CHAT, FakeServer

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ASKED = {"names": ["risk"], "tokens": True, "prompt": True}
HOSTILE = "<img src=x onerror=document.title='run'>"


@pytest.mark.parametrize(
    ("path", "kind"), [("results/any", "html"), ("record.js", "javascript"), ("record.css", "css")]
)
async def test_files_are_served_and_may_only_talk_to_this_server(client: Client, path: str, kind: str) -> None:
    response = await client.http.get(f"/console/{path}")
    assert response.status_code == 200
    assert kind in response.headers["content-type"]
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}


async def test_nothing_else_is_served(client: Client) -> None:
    for name in ("pages.py", "__init__.py", "..%2Fapi%2Froutes.py"):
        assert (await client.http.get(f"/console/{name}")).status_code == 404


async def test_pages_refer_to_files_that_there_are(client: Client) -> None:
    html = (await client.http.get("/console/results/any")).text
    for name in re.findall(r'(?:src|href)="\.\./([^"]+)"', html):
        assert (await client.http.get(f"/console/{name}")).status_code == 200


@asynccontextmanager
async def listening(server: FakeServer) -> AsyncIterator[str]:
    """The application on a port of its own."""
    made = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="error", lifespan="off"))
    task = asyncio.create_task(made.serve())
    while not made.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{made.servers[0].sockets[0].getsockname()[1]}"
    made.should_exit = True
    await task


async def seen_in_a_browser(url: str, folder: Path) -> str:
    """The page's document once its scripts have run."""
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", f"--user-data-dir={folder}"]
    process = await asyncio.create_subprocess_exec(
        BROWSER, *options, "--dump-dom", url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    return out.decode()


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
async def test_a_browser_shows_every_token_with_its_colour(tmp_path: Path) -> None:
    server = FakeServer(write_all(tmp_path, admin_key=None))
    async with listening(server) as url:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": HOSTILE}], "user": "seen", "probes": ASKED}
        async with httpx.AsyncClient(trust_env=False) as http:
            choice = (await http.post(url + CHAT, json=body)).json()["choices"][0]
        document = await seen_in_a_browser(f"{url}/console/results/chatcmpl-seen", tmp_path / "profile")
    risk = choice["probes"]["risk"]
    spans = re.findall(r"<span( [^>]*)?>([^<]*)</span>", document)
    scored = [attributes for attributes, _ in spans if "background-color" in attributes]
    known = [e for e in risk["tokens"] + risk["prompt_tokens"] if e["score"] is not None]
    assert len(known) > 10
    assert [re.search(r"score ([0-9.]+)", attributes)[1] for attributes in scored] == [  # type: ignore[index]
        f"{e['score']:.3f}" for e in [*risk["prompt_tokens"], *risk["tokens"]] if e["score"] is not None
    ]
    assert f"{risk['score']:.3f}" in document
    assert "<title>Record - Pilothouse</title>" in document
