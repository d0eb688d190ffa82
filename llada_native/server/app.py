"""The routes: who asks is let in, what is asked becomes a job of the scheduler, and what comes of it is sent."""
from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .. import __version__
from ..errors import LladaError
from ..model import LLaDAForCausalLM
from ..replay import page as replay_page
from ..result import GenerationResult
from ..scheduler import DeadlineError, Job, QueueFullError, Scheduler, ShutdownError
from . import fields, metrics, schema
from .errors import RefusedError
from .fields import Asked
from .guard import Guard, mistake, refusal
from .settings import Settings
from .shapes import Pieces, Shapes, event

PAGE_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
               "form-action 'none'; frame-ancestors 'none'")
# A replay brings a stricter policy of its own. To this server it is a stranger: it may ask for nothing here.
REPLAY_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; sandbox allow-scripts"
PAGE = {"index.html": "text/html; charset=utf-8", "page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8",
        "icon.svg": "image/svg+xml"}
ENCODERS = 2  # requests whose text is being encoded at a time
UNKNOWN = 499  # for nobody: the client has gone


def create_app(model: LLaDAForCausalLM, scheduler: Scheduler, settings: Settings | None = None) -> Starlette:
    """The server as an ASGI application. Its end ends the scheduler.

    Parameters
    ----------
    model : LLaDAForCausalLM
    scheduler : Scheduler
        Of that model.
    settings : Settings, optional
    """
    service = Service(model, scheduler, settings or Settings())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(scheduler.close, 0.0)

    middleware = [Middleware(Guard, service.settings, service.metrics)]
    if service.settings.origins:
        # Of headers any, for OpenAI's client has many of its own.
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=service.settings.origins, allow_methods=["GET", "POST"],
                                        allow_headers=["*"]))
    return Starlette(
        routes=[
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.completion, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{name:path}", service.model_card),
            Route("/health", service.health),
            Route("/metrics", service.counters),
            Route("/openapi.json", service.openapi),
            Route("/replay/{number}", service.replay),
            Route("/", service.page),
            Route("/page/{part}", service.page),
        ],
        middleware=middleware,
        exception_handlers={RefusedError: _refused, HTTPException: _http_error, ClientDisconnect: _gone},
        lifespan=lifespan,
    )


class Service:
    """What the routes do."""

    def __init__(self, model: LLaDAForCausalLM, scheduler: Scheduler, settings: Settings) -> None:
        self.llada, self.scheduler, self.settings = model, scheduler, settings
        self.metrics = metrics.Metrics(scheduler)
        self.pieces = Pieces(model.tokenizer)
        self.replays: OrderedDict[str, GenerationResult] = OrderedDict()
        self._started = int(time.time())
        self._bodies = 0  # bytes that are being read
        self._encoders = asyncio.Semaphore(ENCODERS)
        self._schema = schema.openapi(settings, model)

    # ---- completions

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, lambda data: fields.chat(data, self.settings, self.llada))

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, lambda data: fields.completion(data, self.settings, self.llada))

    async def _answer(self, request: Request, understand: Callable[[dict[str, Any]], Asked]) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "Content-Type: expected application/json")
        woken, loop = asyncio.Event(), asyncio.get_running_loop()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(woken.set)

        try:
            self.scheduler.check_room()
            async with self._body(request) as body, self._encoders:
                asked, job = await asyncio.to_thread(self._job, body, understand, notify)
            self.scheduler.submit(job)
        except QueueFullError as error:
            raise RefusedError(429, str(error), None, "queue_full", {"retry-after": str(error.retry_after)}) from error
        except ShutdownError as error:
            raise _unavailable(error) from error
        shapes = Shapes(asked, self.settings.name, self.pieces, job.generation.options[0].end_ids)
        work = Work(job, self.scheduler, woken, request.receive)
        if asked.stream:
            return EventStream(work, shapes, lambda: self._kept(asked, job))
        async with work:
            while not job.done.is_set():
                await work.news()
        if job.error is not None:
            raise _error(job, asked)
        return JSONResponse(shapes.whole(job, self._kept(asked, job)))

    def _job(self, body: bytes, understand: Callable[[dict[str, Any]], Asked], notify: Callable[[], None]) -> tuple[Asked, Job]:
        asked = understand(fields.read(body))
        job = Job(asked.generation(self.llada), asked.stop, asked.timeout, asked.stream, asked.drafts, notify)
        try:
            self.scheduler.check(job)
        except ValueError as error:
            raise RefusedError(400, str(error), None, "too_large") from error
        return asked, job

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, within the limits of size and time; all that are held are counted."""
        settings, body = self.settings, bytearray()
        close = {"connection": "close"}  # what is left of it is not read
        too_large = RefusedError(413, f"expected a body of at most {settings.body_bytes} bytes", None, "body_too_large", close)
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and (len(stated) > 18 or int(stated) > settings.body_bytes):
            raise too_large

        async def read() -> None:
            async for part in request.stream():
                body.extend(part)
                self._bodies += len(part)
                if len(body) > settings.body_bytes:
                    raise too_large
                if self._bodies > settings.bodies_bytes:
                    raise RefusedError(429, "other requests' bodies fill the memory that there is for them", None, "queue_full",
                                       {"retry-after": "1", **close})

        try:
            await asyncio.wait_for(read(), settings.body_seconds)
            yield bytes(body)
        except asyncio.TimeoutError as error:
            raise RefusedError(408, f"expected the body within {settings.body_seconds:g} seconds", None, "timeout", close) from error
        finally:
            self._bodies -= len(body)

    # ---- the rest

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model_card(self, request: Request) -> Response:
        if request.path_params["name"] != self.settings.name:
            raise RefusedError(404, f"model: expected {self.settings.name!r}, the only one here", "model", "model_not_found")
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        model = self.llada
        return {"id": self.settings.name, "object": "model", "created": self._started, "owned_by": "llada-native",
                "max_tokens": model.max_tokens, "backend": model.backend, "dtype": model.dtype, "chat": _has_template(model),
                "presets": fields.presets(model)}

    async def health(self, _: Request) -> Response:
        well = self.scheduler.alive
        return JSONResponse({"status": "ok" if well else "ended", "version": __version__, "running": self.scheduler.running,
                             "waiting": self.scheduler.waiting}, 200 if well else 503)

    async def counters(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(self._schema)

    async def page(self, request: Request) -> Response:
        part = request.path_params.get("part", "index.html")
        if part not in PAGE:
            raise HTTPException(404)
        data = (resources.files(__package__) / "page" / part).read_bytes()
        return Response(data, headers={"content-type": PAGE[part], "content-security-policy": PAGE_POLICY})

    async def replay(self, request: Request) -> Response:
        result = self.replays.get(request.path_params["number"])
        if result is None:
            raise RefusedError(404, "no such replay; the last ones are kept, of requests with replay=true", None, "replay_not_found")
        page = await asyncio.to_thread(replay_page, result)
        return Response(page, headers={"content-type": "text/html; charset=utf-8", "content-security-policy": REPLAY_POLICY})

    def _kept(self, asked: Asked, job: Job) -> str | None:
        """Where the replay of an answer is, if one is wanted and has room; the oldest go. Nobody can guess the address."""
        if not asked.replay or job.result is None:
            return None
        number, replays = secrets.token_urlsafe(16), self.replays
        replays[number] = job.result
        while len(replays) > self.settings.replays or sum(map(_predictions, replays.values())) > self.settings.replayed_predictions:
            replays.popitem(last=False)
        return f"/replay/{number}" if number in replays else None


class Work:
    """A job, and the client who waits for it: when the client goes, or nobody waits any more, the job ends.

    Parameters
    ----------
    job : Job
    scheduler : Scheduler
    woken : asyncio.Event
        Set when there is news of the job.
    receive : callable
        Of ASGI; after the body it tells of a disconnect.
    """

    def __init__(self, job: Job, scheduler: Scheduler, woken: asyncio.Event, receive: Receive) -> None:
        self.job, self.scheduler, self._woken, self._receive = job, scheduler, woken, receive
        self._gone: asyncio.Task[None] | None = None

    async def news(self) -> None:
        """Wait until the job has changed.

        Raises
        ------
        ClientDisconnect
        """
        await self._woken.wait()
        self._woken.clear()
        if self._gone is not None and self._gone.done():
            raise ClientDisconnect()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._woken.set()

    async def __aenter__(self) -> Work:
        self._gone = asyncio.ensure_future(self._disconnected())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._gone is not None:
            self._gone.cancel()
        if not self.job.done.is_set():
            self.scheduler.cancel(self.job)


class EventStream(Response):
    """A job's progress as server-sent events. A client who reads slowly gets the newest, and nothing piles up."""

    def __init__(self, work: Work, shapes: Shapes, keep: Callable[[], str | None]) -> None:
        super().__init__(headers={"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._work, self._shapes, self._keep = work, shapes, keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            async with self._work:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for part in self._events():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        work, job, shapes = self._work, self._work.job, self._shapes
        for part in shapes.first():
            yield part
        while not job.done.is_set():
            await work.news()
            for part in shapes.more(job.progress):
                yield part
        if job.error is None:
            for part in shapes.last(job, self._keep()):
                yield part
        else:
            yield event(_error(job, shapes.asked).body())


def _predictions(result: GenerationResult) -> int:
    """How many the record of a run keeps, 12 bytes each: by far the most of it."""
    return sum(len(draft.positions) for forward in result.trace.forwards for _, draft in forward.drafts)


def _has_template(model: LLaDAForCausalLM) -> bool:
    return model.tokenizer is not None and model.tokenizer.chat_template is not None


def _error(job: Job, asked: Asked) -> RefusedError:
    """What a client is told of a job that has failed."""
    error = job.error
    if isinstance(error, DeadlineError):  # that of the client's own wish, or the server's
        return RefusedError(408 if asked.hurried else 504, str(error), None, "deadline_exceeded")
    if isinstance(error, LladaError | MemoryError):
        return _unavailable(error)
    return mistake()


def _unavailable(error: Exception) -> RefusedError:
    code = "shutting_down" if isinstance(error, ShutdownError) else "engine_failed"
    return RefusedError(503, str(error) or "out of memory", None, code)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return refusal(error)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(RefusedError(error.status_code, error.detail, headers=error.headers))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=UNKNOWN)
