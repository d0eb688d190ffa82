"""HTTP connections with clocks: one that sends no whole request, or does not read its answer, is closed."""
from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .settings import Settings


class Crowd:
    """The connections that nothing is owed to, the one that has waited longest first."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.waiting: dict[TimedConnection, None] = {}


class TimedConnection(H11Protocol):
    """uvicorn's HTTP/1.1, which alone would wait for the rest of a request's head, and for a reader, forever.

    Parameters
    ----------
    crowd : Crowd
    **uvicorn
        As uvicorn makes its protocols.
    """

    def __init__(self, crowd: Crowd, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._crowd = crowd
        self._clock: asyncio.TimerHandle | None = None  # of the request that is being sent
        self._stall: asyncio.TimerHandle | None = None  # of the answer that is not being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look(True)
        if len(self.connections) > self._crowd.settings.connections:
            oldest = next(iter(self._crowd.waiting))  # this one, if all others are owed an answer
            del self._crowd.waiting[oldest]  # it leaves later: the next newcomer is not to find it again
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look(True)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look(False)  # uvicorn's own clock runs until something comes

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.waiting.pop(self, None)
        self._stop_clock()
        self._watch_reader(False)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._watch_reader(True)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._watch_reader(False)
        super().resume_writing()

    def _watch_reader(self, stalled: bool) -> None:
        """The buffer towards the client is full, or not any more."""
        if self._stall is not None:
            self._stall.cancel()
        self._stall = self.loop.call_later(self._crowd.settings.stall_seconds, self.transport.abort) if stalled else None

    def _look(self, sending: bool) -> None:
        """Start the clock where part of a request has come, stop it where an answer is owed."""
        if self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY):
            self._stop_clock()
            self._crowd.waiting.pop(self, None)
        elif not self.transport.is_closing():
            self._crowd.waiting.setdefault(self)
            if sending and self._clock is None:
                self._clock = self.loop.call_later(self._crowd.settings.head_seconds, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
