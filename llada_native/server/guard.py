"""Who may ask: the Host and Origin that a browser states, the key, and what every answer carries for a browser's safety."""
from __future__ import annotations

import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RefusedError
from .metrics import Metrics
from .settings import Settings, host_name

OPEN = frozenset({"/", "/health", "/openapi.json"})  # besides the page's parts and replays, whose addresses nobody can guess
OPEN_FOLDERS = ("/page/", "/replay/")
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin", "x-frame-options": "SAMEORIGIN"}


class Guard:
    """Refuses strangers before anything of their requests is read, and counts what is answered."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0  # none yet

        async def careful(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
                self.metrics.answered(scope["path"], status)
            await send(message)

        try:
            self._check_size(scope)
            self._check(scope["path"], Headers(scope=scope))
        except RefusedError as refused:
            await refusal(refused)(scope, receive, careful)
            return
        try:
            await self.app(scope, receive, careful)
        except Exception:
            if not status:
                await refusal(mistake())(scope, receive, careful)
            raise  # for the log
        finally:
            if status == 200:
                self.metrics.took(scope["path"], time.perf_counter() - began)

    def _check_size(self, scope: Scope) -> None:
        """A server's own limit may be one of heads that come in parts."""
        size = len(scope["path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self.settings.head_bytes:
            raise RefusedError(431, f"expected a head of at most {self.settings.head_bytes} bytes", None, "head_too_large",
                               {"connection": "close"})

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.settings.hosts and host_name(host) not in self.settings.hosts:
            raise RefusedError(403, f"Host: expected one of {', '.join(sorted(self.settings.hosts))}; serve --allow-host admits others",
                               None, "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower() and not {origin, "*"} & set(self.settings.origins):
            raise RefusedError(403, "Origin: pages of other sites may not ask; serve --cors-origin admits them", None,
                               "origin_not_allowed")
        if self._key is None or path in OPEN or path.startswith(OPEN_FOLDERS):
            return
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), self._key):
            raise RefusedError(401, "expected the header 'Authorization: Bearer KEY' with the server's key", None, "invalid_api_key",
                               {"www-authenticate": "Bearer"})


def refusal(refused: RefusedError) -> JSONResponse:
    return JSONResponse(refused.body(), refused.status, refused.headers)


def mistake() -> RefusedError:
    """What a client is told of an error that nobody has foreseen: nothing of it."""
    return RefusedError(500, "the server has made a mistake; its log says more", None, "internal_error")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
