"""Backends between a model and its engine, which see what it asks for."""
from __future__ import annotations

import threading

PATIENCE = 900  # seconds: a machine that is shared may stand still for minutes


class NotesCaches:
    """Notes the caches that are made."""

    def __init__(self, backend):
        self.backend, self.made = backend, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def create_kv_cache(self, dtype="float32"):
        self.made.append(self.backend.create_kv_cache(dtype))
        return self.made[-1]


class Gate:
    """Lets forward passes through one by one, or all, and notes how many requests each has."""

    def __init__(self, backend):
        self.backend, self.open, self.passes, self.failure = backend, True, [], None
        self._tickets, self.waiting = threading.Semaphore(0), threading.Semaphore(0)

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def hidden(self, tokens, lengths, *rest, **more):
        if not self.open:
            self.waiting.release()
            assert self._tickets.acquire(timeout=PATIENCE)
        self.passes.append(len(lengths))
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return self.backend.hidden(tokens, lengths, *rest, **more)

    def arrive(self):
        """Wait until a pass stands before the gate."""
        assert self.waiting.acquire(timeout=PATIENCE)

    def let(self, passes=1):
        """Let so many passes through."""
        for _ in range(passes):
            self._tickets.release()

    def unlock(self):
        """Let all through from now on."""
        self.open = True
        self.let()
