"""The end of a server as vLLM ends it: what finished requests left goes out first."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from api_support.artefacts import write_all
from api_support.fake_engine import FakeServer
from api_support.otlp import attributes, http_collector
from fastapi import FastAPI
from vllm.entrypoints.launchers.launcher import serve_http
from vllm.entrypoints.launchers.utils.server_utils import lifespan

from pilothouse.api import plugin
from pilothouse.telemetry.spans import Spans


def vllm_app(fake: FakeServer) -> FastAPI:
    """Our routes in an application that lives and dies as vLLM's does."""
    app = FastAPI(lifespan=lifespan)
    app.include_router(fake.app.router)
    app.state.pilothouse = fake.app.state.pilothouse
    app.state.log_stats = False
    app.state.engine_client = SimpleNamespace(
        vllm_config=SimpleNamespace(shutdown_timeout=0), shutdown=lambda timeout: None, errored=False, is_running=True
    )
    return app


def broken() -> None:
    raise RuntimeError("cannot be closed")


async def test_what_waits_goes_out_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "Spans", partial(Spans, delay=3600))
    with http_collector() as collector, socket.socket() as sock:
        fake = FakeServer(write_all(tmp_path, otlp_endpoint=collector.url, request_log=str(tmp_path / "log")))
        state = fake.app.state.pilothouse
        fake.app.state.pilothouse = replace(state, closing=(broken, *state.closing))
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        serving = asyncio.create_task(serve_http(vllm_app(fake), sock, port=port, log_level="warning"))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                for n in range(3):
                    body = {"prompt": "hello", "probes": ["risk"], "user": str(n)}
                    assert (await client.post("/v1/completions", json=body)).status_code == 200
            assert collector.spans == []
            # By now vLLM's handler has the signal.
            os.kill(os.getpid(), signal.SIGTERM)
            await (await serving)
        finally:
            # vLLM has the garbage collector leave alone what there is when a server starts.
            gc.unfreeze()
        names = [attributes(span.attributes)["gen_ai.response.id"] for span in collector.spans]
    assert "cannot be closed" in caplog.text
    assert sorted(names) == ["cmpl-0", "cmpl-1", "cmpl-2"]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["response_id"] for line in lines] == ["cmpl-0", "cmpl-1", "cmpl-2"]
