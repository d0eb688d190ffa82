"""The denoising loop: every request says what it wants computed, one forward pass does so for all, and each commits what it chose."""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Cache
from .caching import Held, View
from .canvas import Canvas, transfer_quotas
from .denoiser import UNKNOWN, Denoiser, Pass, Prediction
from .result import Decode, IntArray, Step

logger = logging.getLogger("llada_native")

NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True)
class Commit:
    """What a pass writes into a canvas, surest first; nothing where the pass was doubted."""

    positions: NDArray[np.intp]
    tokens: IntArray
    confidence: NDArray[np.float64]


class Course:
    """One request on its way from masks to an answer.

    A pass is asked for with `next_pass`, which may be repeated until `commit` has written what `propose` made of it.

    Parameters
    ----------
    canvas : Canvas
    backend : Backend
        Where the caches of its cache policy come from.
    ends : sequence of int, optional
        The end tokens for `early_stop`; default those of the options.

    Attributes
    ----------
    block, begin, end : int
        The block being filled, or the last one, and where it lies, counted from the start of the prompt.
    finished : bool
    """

    def __init__(self, canvas: Canvas, backend: Backend, ends: Sequence[int] | None = None) -> None:
        self.canvas, self.backend, self.method = canvas, backend, canvas.options.method
        self.ends = canvas.options.end_ids if ends is None else list(ends)
        self.finished = False
        self._memory, self._wants = self.method.selector.memory(), self.method.wants
        self._own: list[Cache] = []
        self._held = Held.nothing(len(canvas.ids))
        self._doubted = False
        self._bound: tuple[int, Sequence[Cache]] = 0, ()
        self._rows: NDArray[np.intp] | None = None  # of the last pass asked for
        self._enter(0)
        self._advance()

    @property
    def index(self) -> int:
        """The present step in the schedule of max_steps steps."""
        return self.block * self.canvas.options.steps_per_block + self._step

    def next_pass(self) -> Pass | None:
        """What to compute next; None at the end."""
        if self.finished:
            return None
        c, method = self.canvas, self.method
        masks = c.masked(0, self.end)
        start, caches = self._bound
        if method.cache.keeps:
            caches, self._rows = self._caches(), self._cached_rows(masks)
        else:
            self._rows = np.arange(start, len(c.ids)) if start else None
        return Pass(self._rows, masks, caches, self._wants)

    def propose(self, found: Prediction) -> Commit:
        """What the selector would write."""
        selector = self.method.selector
        if self._rows is not None and self.method.cache.doubts(found):
            return Commit(found.positions[:0], found.tokens[:0], found.confidence[:0])
        least = max(1, self._quota)
        chosen = selector.choose(found, least, self._memory)
        if len(chosen) < min(least, len(found.positions)):
            raise ValueError(f"selector: expected at least {least} of {len(found.positions)} positions from {selector!r}, "
                             f"found {len(chosen)}")
        if len(set(chosen.tolist()) & set(range(len(found.positions)))) != len(chosen):
            raise ValueError(f"selector: expected different indices below {len(found.positions)} from {selector!r}, found {chosen}")
        return Commit(found.positions[chosen], found.tokens[chosen], found.confidence[chosen])

    def commit(self, commit: Commit) -> None:
        """Write it, and go on to the next step. After nothing, a full pass follows."""
        if self.method.cache.keeps:
            self._held.note(self.canvas.ids, self._rows)
        self._doubted = not len(commit.positions)
        if not self._doubted:
            self.canvas.commit(commit.positions, commit.tokens, commit.confidence, self.index)
            self._step += 1
            self._advance()

    def bind(self, start: int, caches: Sequence[Cache]) -> None:
        """Compute positions from `start` on, with caches of the caller's, one for each half of guidance."""
        self._bound = start, caches

    def forget(self) -> None:
        """The next pass is a full one; for after a pass that failed, when nobody knows what its own caches hold."""
        self._held = Held.nothing(len(self.canvas.ids))
        for cache in self._own:
            if not cache.closed:
                cache.truncate(0)

    def close(self) -> None:
        """Free its caches."""
        for cache in self._own:
            cache.close()

    # ---- the schedule

    @property
    def _quota(self) -> int:
        return self._quotas[self._step] if self._step < len(self._quotas) else 0

    def _enter(self, block: int) -> None:
        c, o = self.canvas, self.canvas.options
        self.block, self._step = block, 0
        self.begin = c.prompt_length + block * o.block_length
        self.end = self.begin + o.block_length
        self._quotas = transfer_quotas(len(c.masked(self.begin, self.end)), o.steps_per_block)
        self._held.full_of_block = False

    def _advance(self) -> None:
        """To the next step that can reveal something; the last one finishes the request.

        Where masks may be drawn, the quotas alone say when a block is done, for its masks can outlast them.
        """
        c = self.canvas
        if self.method.early_stop and c.answered(self.ends):
            assert c.options.eos_id is not None
            c.fill(c.options.eos_id)
            self._finish()
        by_quota = self.method.selector.reveals_masks
        while not self.finished and not (self._quota if by_quota else len(c.masked(self.begin, self.end))):
            if self.block + 1 < c.options.blocks:
                self._enter(self.block + 1)
            else:
                self._finish()

    def _finish(self) -> None:
        self.finished = True
        self.close()

    # ---- caches of its policy

    def _caches(self) -> list[Cache]:
        if not self._own:
            self._own = [self.backend.create_kv_cache() for _ in range(2 if self.canvas.rule.guided else 1)]
        return self._own

    def _cached_rows(self, masks: NDArray[np.intp]) -> NDArray[np.intp] | None:
        if self._doubted or not self._held.passes:
            return None
        rows = self.method.cache.rows(View(self.canvas.ids, self.begin, self.end, masks), self._held)
        if rows is not None and not np.isin(masks, rows).all():
            raise ValueError(f"cache: expected all {len(masks)} open positions among the rows of {self.method.cache!r}")
        return rows


class Denoising:
    """One generation over a batch of canvases.

    Parameters
    ----------
    backend : Backend
    canvases : list of Canvas
    settled : callable
        The text of an answer up to its first mask, for `Step.text`.
    """

    def __init__(self, backend: Backend, canvases: Sequence[Canvas], settled: Decode) -> None:
        self.canvases, self.settled = list(canvases), settled
        self.denoiser = Denoiser(backend)
        for i, canvas in enumerate(self.canvases):
            hidden = len(canvas.masked(0, canvas.prompt_length))
            if hidden:
                logger.warning("prompt %d holds %d mask tokens: they are filled like the canvas and count against its quota, so as "
                               "many masks can remain at its end", i, hidden)
        self.courses = [Course(canvas, backend) for canvas in self.canvases]
        self.n_steps = max(c.options.max_steps for c in self.canvases)
        self.n_blocks = max(c.options.blocks for c in self.canvases)
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def steps(self) -> Iterator[Step]:
        """Run to the end; each item is a step that has been taken. Finished requests leave the batch."""
        try:
            while active := {i: p for i, course in enumerate(self.courses) if (p := course.next_pass()) is not None}:
                yield self._step(active)
        finally:
            for course in self.courses:
                course.close()

    def _step(self, active: dict[int, Pass]) -> Step:
        courses = [self.courses[i] for i in active]
        index, block = max(c.index for c in courses), max(c.block for c in courses)
        predictions = self.denoiser.predict([c.canvas for c in courses], list(active.values()))
        positions, tokens = [NOTHING] * len(self.canvases), [NOTHING] * len(self.canvases)
        confidence = [UNKNOWN] * len(self.canvases)
        for i, course, found in zip(active, courses, predictions, strict=True):
            commit = course.propose(found)
            course.commit(commit)
            positions[i], tokens[i], confidence[i] = commit.positions.astype(np.int32), commit.tokens, commit.confidence

        seconds = self.seconds
        return Step(index, self.n_steps, block, self.n_blocks, positions, tokens, confidence,
                    [int(np.count_nonzero(c.ids == c.mask_id)) for c in self.canvases], [c.answer.copy() for c in self.canvases],
                    seconds, seconds / (index + 1) * (self.n_steps - index - 1), self.settled)
