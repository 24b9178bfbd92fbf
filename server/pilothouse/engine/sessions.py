"""What vLLM's handlers share when they serve with sessions: a session around each request, and around its stream."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pilothouse.core.errors import BadRequest, EngineGap
from pilothouse.core.records import ABORTED, REFUSED
from pilothouse.core.serving import RequestExtension, RequestSession
from pilothouse.engine.client import NullSession, SteeringClient, current_session

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing as _Base
else:
    _Base = object

Event = TypeVar("Event")


class SteeringServing(_Base):
    """A handler of vLLM's whose requests have sessions."""

    pilothouse_extension: RequestExtension
    pilothouse_client: SteeringClient

    async def _with_session(
        self, route: str, request: Any, create: Callable[[], Any], fields: Mapping[str, Any] | None = None
    ) -> Any:
        """Open a session, let vLLM do the request, put the session's findings into the response.

        fields: those of the request that vLLM does not know; absent, what its model of the request kept of them.
        """
        given = dict(request.model_extra or {}) if fields is None else dict(fields)
        beams = self._searches_beams(request)
        try:
            names = [path.name for path in self.models.base_model_paths]
            name = request.model if request.model in names else names[0]
            session = self.pilothouse_extension.open({**given, "use_beam_search": beams}, route, name)
        except BadRequest as error:
            return self._refuse(error)
        token = current_session.set(cast(RequestSession, NullSession()) if beams else session)
        try:
            result = await create()
        except BadRequest as error:
            session.close(REFUSED)
            return self._refuse(error)
        except EngineGap as gap:
            return self._gap(session, gap)
        except BaseException as error:
            session.close(ABORTED if isinstance(error, asyncio.CancelledError) else type(error).__name__)
            raise
        finally:
            current_session.reset(token)
        if beams and not hasattr(result, "choices") and not hasattr(result, "error"):
            return within(NullSession(), result)
        try:
            return self._finish(result, session, request)
        except EngineGap as gap:
            return self._gap(session, gap)

    def _searches_beams(self, request: Any) -> bool:
        """Whether vLLM will search beams for the request; where a route has none, the field means nothing."""
        return False

    def _refuse(self, error: BadRequest) -> Any:
        """A bad request as vLLM's routes answer it."""
        return self.create_error_response(str(error), param=error.param)

    def _gap(self, session: RequestSession, gap: EngineGap) -> Any:
        session.close(str(gap))
        return self.create_error_response(gap)

    def _finish(self, result: Any, session: RequestSession, request: Any) -> Any:
        """The response with what the session found; EngineGap when it must not be given. Streams end by themselves."""
        if hasattr(result, "error"):
            # vLLM's handlers make an error of it that the client has gone, and nobody reads.
            task = asyncio.current_task()
            gone = task is not None and task.cancelling() > 0
            session.close(ABORTED if gone else result.error.message)
        return result


def request_session() -> RequestSession | None:
    """The session of the request being handled; None where it has none, or beams are searched."""
    session = current_session.get()
    return None if isinstance(session, NullSession) else session


async def relay(
    session: RequestSession,
    events: AsyncGenerator[Event, None],
    rewrite: Callable[[Event], Iterable[Event]],
    failed: Callable[[Exception], Iterable[Event]],
) -> AsyncGenerator[Event, None]:
    """A stream with scores put in by `rewrite`, which gives each event in parts; the session ends with it, however it
    ends.

    A gap ends it with `failed`, as vLLM's own errors would, whichever choice it is in; what still runs is given up.
    """
    error: str | None = ABORTED
    try:
        async with aclosing(events):
            async for event in events:
                for part in rewrite(event):
                    yield part
        error = None
    except EngineGap as gap:
        # The record must be there before the client can know that the response has ended.
        session.close(str(gap))
        for event in failed(gap):
            yield event
    except Exception as failure:
        logger.exception("a stream broke, or scores could not be put into it")
        error = type(failure).__name__
        for event in failed(failure):
            yield event
    finally:
        session.close(error)


async def within(
    session: RequestSession | NullSession | None, items: AsyncIterator[Event]
) -> AsyncGenerator[Event, None]:
    """`items`, each made with `session` as the current one: for generators that hand requests to the engine while they
    are read, which is in another context than that of the request. None stands for the server's default probes."""
    iterator = aiter(items)
    try:
        while True:
            token = current_session.set(session)
            try:
                item = await anext(iterator)
            except StopAsyncIteration:
                return
            finally:
                current_session.reset(token)
            yield item
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
