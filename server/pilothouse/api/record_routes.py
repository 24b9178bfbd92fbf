"""Records over HTTP: one, a list, a file of them, and labels; all of it needs a key where one is configured."""

import logging
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from pilothouse.api.assessment import assess
from pilothouse.api.errors import BusyError
from pilothouse.api.guard import RESULTS
from pilothouse.api.keys import require_reader
from pilothouse.api.names import quote
from pilothouse.api.record_access import flush, read_record, records_of
from pilothouse.api.record_query import ListQuery, parse_export, parse_list
from pilothouse.api.state import ApiState, state_of
from pilothouse.core.errors import BadRequest, NotFound
from pilothouse.records.database import DatabaseError
from pilothouse.records.filters import Filters
from pilothouse.records.labels import Label, StoredLabel
from pilothouse.records.store import Page

logger = logging.getLogger(__name__)

EXPORT = "export"
_LONGEST_SOURCE = 200
_LARGEST_CHOICE = 2**31 - 1
_PARQUET = "application/vnd.apache.parquet"

_Name = Annotated[StrictStr, Field(min_length=1)]


class LabelBody(BaseModel):
    """What somebody found of one choice of a response."""

    model_config = ConfigDict(extra="forbid")

    probe: _Name
    value: StrictBool
    source: Annotated[_Name, Field(max_length=_LONGEST_SOURCE)]
    choice: Annotated[StrictInt, Field(ge=0, le=_LARGEST_CHOICE)] = 0


def add_record_routes(router: APIRouter) -> None:
    """All of them."""
    router.add_api_route(RESULTS, results, methods=["GET"])
    router.add_api_route(f"{RESULTS}/{{response_id:path}}", result, methods=["GET"])
    router.add_api_route(f"{RESULTS}/{{response_id:path}}/label", label, methods=["POST"])


async def result(request: Request, response_id: str) -> Response:
    """The record of one response, or a file of many. A client may choose its response's id: one called `export` is told
    from the file by the format that the file is asked for in."""
    require_reader(request)
    if not response_id:
        raise NotFound("there is no record without an id")
    if response_id == EXPORT and "format" in request.query_params:
        return await export(request)
    return Response(await run_in_threadpool(read_record, state_of(request), response_id), media_type="application/json")


async def results(request: Request) -> dict[str, Any]:
    """A page of records."""
    require_reader(request)
    state = state_of(request)
    query = parse_list(request.query_params)
    page = await run_in_threadpool(_page, state, query)
    after = None if page.next is None else str(page.next)
    return {"object": "list", "data": page.records, "has_more": page.next is not None, "next": after}


async def export(request: Request) -> Response:
    """Records as a Parquet file."""
    state = state_of(request)
    filters = parse_export(request.query_params)
    first, pieces = await run_in_threadpool(_export, state, filters)

    def whole() -> Iterator[bytes]:
        yield first
        yield from pieces

    disposition = 'attachment; filename="records.parquet"'
    return StreamingResponse(whole(), media_type=_PARQUET, headers={"Content-Disposition": disposition})


async def label(request: Request, response_id: str) -> dict[str, Any]:
    """Store what somebody found of a response."""
    require_reader(request)
    state = state_of(request)
    body = _label_body(await request.body())
    stored = await run_in_threadpool(_store_label, state, response_id, Label(**body.model_dump()))
    state.metrics.count_label(stored.model, body.probe, stored.flagged, body.value)
    return {"id": response_id, "object": "probe.label", **stored.shown}


def _label_body(raw: bytes) -> LabelBody:
    try:
        return LabelBody.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        raise BadRequest(f"a label is not like this: {first['msg']}", param=param) from None


def _page(state: ApiState, query: ListQuery) -> Page:
    store = records_of(state).store
    flush(state)
    try:
        return store.page(query.filters, query.order, query.after, query.limit)
    except DatabaseError as error:
        raise _unavailable(error) from error


def _export(state: ApiState, filters: Filters) -> tuple[bytes, Iterator[bytes]]:
    """The file's first piece, for a database that fails is an error of the request as long as nothing was sent."""
    store = records_of(state).store
    flush(state)
    pieces = store.exported(filters)
    try:
        return next(pieces), pieces
    except DatabaseError as error:
        raise _unavailable(error) from error


def _store_label(state: ApiState, response_id: str, label: Label) -> StoredLabel:
    store = records_of(state).store
    flush(state)
    try:
        stored = store.label(response_id, label)
    except NotFound:
        raise NotFound(
            f"there is no stored record of response {quote(response_id)}: it is unknown, unscored or too old"
        ) from None
    except DatabaseError as error:
        raise _unavailable(error) from error
    try:
        assess(store, state.registry, state.metrics)
    except DatabaseError as error:
        # The label is there; the next look will count it.
        logger.debug("Labelled records could not be read: %s", error)
    return stored


def _unavailable(error: DatabaseError) -> BusyError:
    return BusyError(f"the database of records does not answer: {error}")
