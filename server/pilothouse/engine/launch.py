"""`pilothouse serve`: vLLM's own server, its flags and processes, with the seams filled in."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pilothouse.core.config import EngineLayout
from pilothouse.core.errors import PilothouseError, StartupError
from pilothouse.core.siblings import Siblings
from pilothouse.core.sites import ModelShape
from pilothouse.engine.failure import report_startup_failure, startup_failures
from pilothouse.engine.options import SEAMS, compile_key, prefer_runner, refuse_taken
from pilothouse.engine.support import model_shape, require_supported_config, require_supported_environment
from pilothouse.engine.versions import require_supported_vllm

PLUGIN = "pilothouse"
_LIVE = "live"
"""What the name of a file begins with that an API server leaves when it is live."""


def prepare_environment() -> None:
    """Settings that must be there before vLLM is imported, for every process of the server."""
    require_supported_environment()
    os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*_plugins(), PLUGIN]))
    prefer_runner()


def serve(
    arguments: Sequence[str],
    layout: EngineLayout,
    check: Callable[[ModelShape, list[str]], None],
    ready: Callable[[str, str], None],
    admin_key: str | None = None,
    reader_key: str | None = None,
) -> None:
    """Run vLLM's server until it is stopped.

    arguments: those of `vllm serve`, the model first; check: raises StartupError or ArtefactError when something
    configured does not fit the model of this shape and these served names, before any weights are loaded; ready: called
    with the base URL and the served model's name once requests are accepted; admin_key, reader_key: join vLLM's own API
    keys where there are any, whose check comes first and reads the same header.
    """
    require_supported_vllm()
    prepare_environment()
    args = parse_arguments(arguments, layout)
    args.api_key = api_keys(args.api_key, admin_key, reader_key)
    config = engine_config(args)
    require_supported_config(config)
    names = args.served_model_name or [args.model]
    check(model_shape(config, layout.sites), names)
    with startup_failures() as folder:
        announced = Event()

        def announce() -> None:
            announced.set()
            ready(_base_url(args), names[0])

        _verify_live(announce)
        _prepare_api_servers(folder, announce, announced)
        _serve_command().cmd(args)


def api_keys(given: list[str] | None, admin_key: str | None, reader_key: str | None) -> list[str] | None:
    """vLLM's API keys, of its option or else its variable, with ours; None where nobody needs one. StartupError if the
    reader key is one of them: it would not open what they do."""
    from vllm import envs

    keys = [key for key in (given or [envs.VLLM_API_KEY]) if key]
    if not keys:
        return None
    if reader_key in keys:
        raise StartupError("the reader key must not be an API key: it reads records, and nothing else")
    return [*keys, *(key for key in (admin_key, reader_key) if key is not None)]


def names_model(arguments: Sequence[str]) -> bool:
    """Whether arguments of `vllm serve` name a model, by vLLM's own parser."""
    require_supported_vllm()
    args = _parser().parse_args(list(arguments))
    return args.model_tag is not None or any(a == "--model" or a.startswith("--model=") for a in arguments)


def _parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="pilothouse serve"))


def parse_arguments(arguments: Sequence[str], layout: EngineLayout) -> Any:
    """`arguments` of `vllm serve` as vLLM parses them, with the seams filled in."""
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()
    # vLLM takes the configuration of a subcommand from a first word "serve".
    sys.argv = ["vllm", "serve", *arguments]
    args = _parser().parse_args(list(arguments))
    refuse_taken(vars(args), lambda name: f"--{name.replace('_', '-')}")
    for name, ours in SEAMS.items():
        setattr(args, name, ours)
    args.additional_config = {**(args.additional_config or {}), **compile_key(layout)}
    if args.headless or args.api_server_count == 0 or getattr(args, "grpc", False):
        raise StartupError("this release of Pilothouse does not serve headless or by gRPC")
    args.model = args.model_tag or args.model
    validate_parsed_serve_args(args)
    return args


def _serve_command() -> Any:
    from vllm.entrypoints.cli.serve import ServeSubcommand

    return ServeSubcommand()


def engine_config(args: Any) -> Any:
    """vLLM's configuration for parsed arguments."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    return AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def _verify_live(ready: Callable[[], None]) -> None:
    """vLLM logs a failing endpoint plugin and serves without it; then nothing would be steered, silently."""
    from vllm.entrypoints.launchers.api_server import entry

    original = entry.init_app_state

    async def init_app_state(engine_client: Any, state: Any, *args: Any, **kwargs: Any) -> None:
        await original(engine_client, state, *args, **kwargs)
        if getattr(state, "pilothouse", None) is None:
            raise StartupError("vLLM did not load Pilothouse's endpoint plugin (see its log above)")
        ready()

    entry.init_app_state = init_app_state


def _prepare_api_servers(folder: Path, announce: Callable[[], None], announced: Event) -> None:
    """Where vLLM starts several API servers, each in a process of its own, have every one of them know the others and
    verify itself; `announce` once all of them are live.

    folder: where the processes meet; announced: set as soon as nobody need wait for them.
    """
    from vllm.v1 import utils

    utils.run_api_server_worker_proc = partial(run_api_server, str(folder))
    Thread(target=_announce_when_live, args=(folder, announce, announced), daemon=True).start()


def run_api_server(folder: str, listen_address: str, sock: Any, args: Any, client_config: dict[str, Any]) -> None:
    """One of several API servers: what vLLM runs in such a process, with the seams filled in."""
    from vllm.v1.utils import run_api_server_worker_proc

    index, count = client_config["client_index"], client_config["client_count"]
    Siblings(folder, index, count).to_environment()
    _verify_live((Path(folder) / f"{_LIVE}.{index}.{count}").touch)
    try:
        run_api_server_worker_proc(listen_address, sock, args, client_config)
    except PilothouseError as error:
        report_startup_failure(str(error))
        raise


def _announce_when_live(folder: Path, announce: Callable[[], None], announced: Event) -> None:
    while not announced.wait(0.2):
        live = list(folder.glob(f"{_LIVE}.*"))
        if live and len(live) == int(live[0].suffix[1:]):
            announce()


def _base_url(args: Any) -> str:
    host = args.host if args.host not in (None, "", "0.0.0.0", "::") else "localhost"
    return f"http://{host}:{args.port}"


def _plugins() -> list[str]:
    return [name for name in os.environ.get("VLLM_PLUGINS", "").split(",") if name]
