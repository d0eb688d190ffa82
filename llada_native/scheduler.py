"""Continuous batching: requests join and leave between the forward passes of one model, which one thread makes."""
from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decoding import Denoising, together
from .denoiser import Denoiser
from .errors import GenerationCancelled, LladaError
from .fallback import interruptible
from .generation import Generation
from .model import LLaDAForCausalLM
from .result import GenerationResult, IntArray, Step

logger = logging.getLogger("llada_native")

LONGEST_WAIT = 60  # seconds that a full queue asks for at most
SMOOTHING = 0.2  # of the running mean of how long a request takes


class QueueFullError(LladaError):
    """No place to wait in. `retry_after` are the seconds until one is likely."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(LladaError):
    """A request was not done in its time."""


class ShutdownError(LladaError):
    """The scheduler takes no requests any more, or has given up those it had."""


@dataclass(frozen=True)
class Answer:
    """One finished answer.

    Attributes
    ----------
    text : str
        Cut before a stop string.
    finish_reason : {"stop", "length"}
    tokens : int32 [length]
        Up to its end token, or to the one that completed a stop string.
    confidence : float64 [length]
    """

    text: str
    finish_reason: str
    tokens: IntArray
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class Progress:
    """How far a request is; one entry an answer.

    Attributes
    ----------
    texts : tuple of str
        What is settled, cut before a stop string.
    canvases, drafts : tuple of int32 [gen_length]
        Where drafts are wanted: the answers as they stand, and with what the last pass would have put in the place of masks.
    step : Step or None
    """

    texts: tuple[str, ...]
    canvases: tuple[IntArray, ...] = ()
    drafts: tuple[IntArray, ...] = ()
    step: Step | None = None


class Job:
    """A request on its way through a `Scheduler`, which alone changes it; others read it from any thread.

    Parameters
    ----------
    generation : Generation
        One answer or several, which end together.
    stop : sequence of str
        An answer ends where its settled text holds one of these.
    deadline : float
        Seconds that it may take, waiting included.
    follow, drafts : bool
        Whether somebody reads its progress, and with drafts.
    notify : callable, optional
        Called on the scheduler's thread after each step that is followed, and at the end. It must return at once.

    Attributes
    ----------
    progress : Progress
        The newest; a reader who is late misses those between.
    answers : list of Answer
        At the end.
    result : GenerationResult or None
    error : Exception or None
        Why there is none.
    done : threading.Event
    rows : int
        Of its largest forward pass.
    """

    def __init__(self, generation: Generation, stop: Sequence[str] = (), deadline: float = math.inf, follow: bool = False,
                 drafts: bool = False, notify: Callable[[], None] | None = None) -> None:
        self.generation, self.stop, self.follow, self.drafts = generation, tuple(stop), follow, drafts
        self.seconds_allowed, self.due, self._notify = deadline, time.monotonic() + deadline, notify
        self.submitted = time.monotonic()
        self.cancelled = False
        self.done = threading.Event()
        self.result: GenerationResult | None = None
        self.error: Exception | None = None
        self.answers: list[Answer] = []
        self.requests = len(generation.prompts)
        longest = generation.model.max_tokens
        self.rows = sum((2 if o.cfg_scale > 0 else 1) * (longest if o.canvas.grows else len(prompt) + len(answer)) + o.block_length
                        * o.method.editor.verifies
                        for prompt, answer, o in zip(generation.prompts, generation.answers, generation.options, strict=True))
        self.progress = Progress(("",) * self.requests)
        self._run: Denoising | None = None
        self._settled = [0] * self.requests  # tokens
        self._texts = [""] * self.requests

    # ---- on the scheduler's thread

    def _start(self, denoiser: Denoiser) -> None:
        self._run = self.generation.denoising(denoiser, self.drafts)

    @property
    def _finished(self) -> bool:
        assert self._run is not None
        return all(course.finished for course in self._run.courses)

    def _advance(self, step: Step) -> None:
        """Take notice of a step."""
        if not self.follow and not self.stop:
            return
        assert self._run is not None
        for i, course in enumerate(self._run.courses):
            answer = self._run.trace.settled(i, step.forward)
            masks = np.flatnonzero(answer == self._run.trace.mask_id)
            settled = int(masks[0]) if len(masks) else len(answer)
            if settled > self._settled[i]:
                self._settled[i], self._texts[i] = settled, self._run.settled(answer)
                if (cut := cut_at(self._texts[i], self.stop)) is not None:
                    self._texts[i] = cut
                    course.finish()
        if self.follow:
            drafts = [] if step.drafts is None else step.drafts
            self.progress = Progress(tuple(self._texts), tuple(step.canvas) if self.drafts else (), tuple(drafts), step)
            self._tell()

    def _conclude(self) -> None:
        assert self._run is not None
        self.result = self.generation.result(self._run, False)
        for i, text in enumerate(self.result.text):
            ids = self.result.sequences[i][self.result.prompt_lengths[i]:]
            length, reason = self.result.answer_lengths[i], self.result.finish_reason[i]
            if (cut := cut_at(text, self.stop)) is not None:
                text, reason = cut, "stop"
                length = self._completing(ids)
            self.answers.append(Answer(text, reason, ids[:length], self.result.confidence[i][:length]))

    def _completing(self, ids: IntArray) -> int:
        """How many tokens it takes for a stop string."""
        assert self._run is not None
        decode, masks = self._run.decode, np.flatnonzero(ids == self._run.trace.mask_id)
        lengths = range(1, int(masks[0]) if len(masks) else len(ids))
        return 1 + bisect_left(lengths, True, key=lambda n: cut_at(decode(ids[:n]), self.stop) is not None)

    def _end(self, error: Exception | None = None) -> None:
        if self._run is not None:
            self._run.close()
        self.error, self._run = error, None
        self.done.set()
        self._tell()

    def _tell(self) -> None:
        if self._notify is not None:
            self._notify()


class Scheduler:
    """Forward passes for all requests of one model, on a thread of its own.

    Requests are taken in the order in which they came, as many as have room; all that have been taken get every pass. What a request
    gets does not depend on the others: its tokens are those of `LLaDAForCausalLM.generate`.

    Parameters
    ----------
    model : LLaDAForCausalLM
    max_requests : int
        Answers in one forward pass.
    max_rows : int, optional
        Positions in one forward pass. Default: enough for one answer of the model's longest with guidance, and at least 16384.
    max_waiting : int
        Requests in the queue.
    """

    def __init__(self, model: LLaDAForCausalLM, max_requests: int = 16, max_rows: int | None = None, max_waiting: int = 64) -> None:
        self.model, self.max_requests, self.max_waiting = model, max_requests, max_waiting
        self.max_rows = max(16384, 3 * model.max_tokens) if max_rows is None else max_rows
        self.counts: Counter[str] = Counter()  # of passes, rows, tokens and of how requests ended
        self._denoiser = Denoiser(model._backend)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._seconds = 1.0  # that a request has taken of late
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="llada-native scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def check(self, job: Job) -> None:
        """Raises ValueError where a request is too large for any forward pass."""
        if job.requests > self.max_requests:
            raise ValueError(f"expected at most {self.max_requests} answers of one request, found {job.requests}")
        if job.rows > self.max_rows:
            raise ValueError(f"expected at most {self.max_rows} positions in one request, guidance counted twice, found {job.rows}")

    def check_room(self) -> None:
        """Raises QueueFullError or ShutdownError where a request would have to leave again."""
        if self._closing:
            raise ShutdownError("the server is shutting down")
        if len(self._waiting) >= self.max_waiting:
            self.counts["refused"] += 1
            rounds = (len(self._waiting) + 1) / max(1, len(self._running))
            raise QueueFullError(f"{len(self._waiting)} requests are waiting, and there is room for {self.max_waiting}",
                                 max(1, min(LONGEST_WAIT, math.ceil(self._seconds * rounds))))

    def submit(self, job: Job) -> Job:
        """Put a request into the queue.

        Raises
        ------
        ValueError
            It is too large for any forward pass.
        QueueFullError, ShutdownError
        """
        self.check(job)
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """End a request before the next forward pass; nothing happens if it has ended."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._stop(job, GenerationCancelled("the request was cancelled"), "cancelled")

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, give those that there are so many seconds, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace)
        with self._changed:
            for job in [*self._waiting, *self._running]:
                job.cancelled = True
        self._thread.join()

    # ---- the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closing):
                    self._changed.wait()
                if not (self._waiting or self._running):
                    return
                self._sweep()
                fresh = self._admitted()
            for job in fresh:
                try:
                    job._start(self._denoiser)
                except Exception as e:
                    self._fail([job], e)
            if self._running:
                self._pass()

    def _sweep(self) -> None:
        """Let go of requests that nobody wants, or that are late."""
        now = time.monotonic()
        for job in [*self._waiting, *self._running]:
            late = job.due < now
            if job.cancelled or late:
                (self._waiting if job in self._waiting else self._running).remove(job)
                self._stop(job, DeadlineError(f"the request was not done within its {job.seconds_allowed:g} seconds") if late else
                           ShutdownError("the server is shutting down") if self._closing else
                           GenerationCancelled("the request was cancelled"), "late" if late else "cancelled")

    def _admitted(self) -> list[Job]:
        """Move requests from the queue into the batch while the first of them has room; none overtakes another."""
        fresh = []
        while self._waiting:
            job, batch = self._waiting[0], self._running
            if (sum(j.requests for j in batch) + job.requests > self.max_requests
                    or sum(j.rows for j in batch) + job.rows > self.max_rows):
                break
            fresh.append(self._waiting.popleft())
            batch.append(job)
        return fresh

    def _pass(self) -> None:
        jobs, rows = list(self._running), self._denoiser.rows_computed
        try:
            with interruptible(self.model._backend):
                steps = together(self._denoiser, [job._run for job in jobs if job._run is not None])
        except Exception as e:  # whatever it is: these requests have failed, the next may not
            self._fail(jobs, e)
            return
        self.counts["passes"] += 1
        self.counts["rows"] += self._denoiser.rows_computed - rows
        for job, step in zip(jobs, steps, strict=True):
            try:
                if step is not None:
                    job._advance(step)
                if finished := job._finished:
                    job._conclude()
            except Exception as e:  # of this one's text: the others go on
                self._fail([job], e)
                continue
            if finished:
                self._leave(job)

    def _leave(self, job: Job) -> None:
        with self._changed:
            self._running.remove(job)
        self._seconds += SMOOTHING * (time.monotonic() - job.submitted - self._seconds)
        self.counts["tokens"] += sum(len(answer.tokens) for answer in job.answers)
        self._stop(job, None, "finished")

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        logger.error("%d request(s) have failed: %s: %s", len(jobs), type(error).__name__, error, exc_info=error)
        with self._changed:
            for job in jobs:
                self._running.remove(job)
        for job in jobs:
            self._stop(job, error, "failed")

    def _stop(self, job: Job, error: Exception | None, how: str) -> None:
        self.counts[how] += 1
        job._end(error)


def cut_at(text: str, stops: Sequence[str]) -> str | None:
    """The text before the stop string that is complete first, None where there is none.

    Whatever more of the text is known, it stays the first.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return text[:min(found)[1]] if found else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop string."""
    return max((n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0)
