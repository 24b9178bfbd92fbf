"""Where vLLM starts API servers in processes of their own, each of them verifies itself, and says why it cannot."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.launchers.api_server import entry
from vllm.v1 import utils

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import StartupError
from pilothouse.core.siblings import SIBLINGS_ENV, Siblings
from pilothouse.engine import launch
from pilothouse.engine.failure import startup_failures
from pilothouse.engine.options import SHARED_BALANCING

CLIENT = {"client_index": 1, "client_count": 2}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """What vLLM runs in such a process, as far as we see of it: the application's state is made."""

    def run(live: bool) -> None:
        async def init_app_state(engine_client: Any, state: Any, *rest: Any) -> None:
            if live:
                state.pilothouse = "here"

        def serve(address: str, sock: Any, args: Any, client_config: dict[str, Any]) -> None:
            asyncio.run(entry.init_app_state(None, SimpleNamespace()))

        monkeypatch.setattr(entry, "init_app_state", init_app_state)
        monkeypatch.setattr(utils, "run_api_server_worker_proc", serve)
        monkeypatch.setenv(SIBLINGS_ENV, "")

    return run


def test_an_api_server_knows_which_it_is_and_says_that_it_is_live(
    in_process: Callable[[bool], None], tmp_path: Path
) -> None:
    in_process(True)
    launch.run_api_server(str(tmp_path), "", None, None, CLIENT)
    assert Siblings.from_environment() == Siblings(str(tmp_path), 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["live.1.2"]


def test_an_api_server_without_the_plugin_ends_the_server_with_the_reason(in_process: Callable[[bool], None]) -> None:
    in_process(False)

    def serve() -> None:
        with startup_failures() as folder:
            with pytest.raises(StartupError):
                launch.run_api_server(str(folder), "", None, None, CLIENT)
            assert not list(folder.glob("live.*"))
            # What vLLM says in the process that started it.
            raise RuntimeError("Process ApiServer_1 died with exit code 1")

    with pytest.raises(StartupError, match="did not load Pilothouse's endpoint plugin"):
        serve()


def test_what_each_process_runs_can_be_sent_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(utils, "run_api_server_worker_proc", utils.run_api_server_worker_proc)
    announced = Event()
    announced.set()
    launch._prepare_api_servers(tmp_path, lambda: None, announced)
    sent = pickle.loads(pickle.dumps(utils.run_api_server_worker_proc))
    assert isinstance(sent, partial)
    assert (sent.func, sent.args) == (launch.run_api_server, (str(tmp_path),))
    source = inspect.getsource(utils.APIServerProcessManager.__init__)
    assert "target=target_server_fn or run_api_server_worker_proc" in source


def test_it_is_announced_once_all_are_live(tmp_path: Path) -> None:
    announced, calls = Event(), []

    def announce() -> None:
        calls.append(len(list(tmp_path.iterdir())))
        announced.set()

    waiting = Thread(target=launch._announce_when_live, args=(tmp_path, announce, announced))
    waiting.start()
    (tmp_path / "live.1.2").touch()
    waiting.join(timeout=0.5)
    assert waiting.is_alive(), "one of two is not all"
    (tmp_path / "live.0.2").touch()
    waiting.join(timeout=10)
    assert calls == [2]


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        *((f"--{name.replace('_', '-')}", "belong to one server") for name in SHARED_BALANCING if "lb" in name),
        ("--data-parallel-rank=0", "belong to one server"),
        ("--data-parallel-start-rank=1", "belong to one server"),
        ("--headless", "headless"),
        ("--api-server-count=0", "headless"),
    ],
)
def test_servers_that_would_not_steer_are_not_started(flag: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=reason):
        launch.parse_arguments([str(tmp_path), flag], EngineLayout())


@pytest.mark.parametrize(
    ("given", "variable", "keys"),
    [
        (None, None, None),
        ([], None, None),
        (["a", "b"], None, ["a", "b", "admin", "reader"]),
        (None, "c", ["c", "admin", "reader"]),
        (["a"], "c", ["a", "admin", "reader"]),
        (["admin"], None, ["admin", "admin", "reader"]),
    ],
)
def test_our_keys_pass_vllms_check_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, given: list[str] | None, variable: str | None, keys: list[str] | None
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("VLLM_API_KEY", variable)
    assert launch.api_keys(given, "admin", "reader") == keys
    assert launch.api_keys(["a"], None, None) == ["a"]


def test_the_reader_key_is_no_api_key() -> None:
    with pytest.raises(StartupError, match="reader key"):
        launch.api_keys(["a", "reader"], "admin", "reader")
