"""The console's pages. They hold no data: the browser asks the server's routes for it, with the key it is given."""

from fastapi import APIRouter, Response

from pilothouse.api.names import quote
from pilothouse.console.pages import POLICY, RECORD, page
from pilothouse.core.errors import NotFound

CONSOLE = "/console"
_HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def add_console_routes(router: APIRouter) -> None:
    """A page for each record, and what the pages are made of."""
    router.add_api_route(
        f"{CONSOLE}/results/{{response_id:path}}", record_page, methods=["GET"], include_in_schema=False
    )
    router.add_api_route(f"{CONSOLE}/{{name}}", asset, methods=["GET"], include_in_schema=False)


async def record_page(response_id: str) -> Response:
    """The page that shows the record whose id its own address ends with."""
    return _file(RECORD)


async def asset(name: str) -> Response:
    """A script or a style."""
    return _file(name)


def _file(name: str) -> Response:
    found = page(name)
    if found is None:
        raise NotFound(f"the console has no file {quote(name)}")
    return Response(found.content, media_type=found.media_type, headers=_HEADERS)
