"""The denoising loop: every request says what it wants computed, one forward pass does so for all, and each commits what it chose.

A `Denoising` is one call's requests. `together` takes the next step of any set of them in one forward pass, so that calls can join and
leave between passes; `Denoising.steps` is the loop over one alone.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from .canvas import Canvas
from .carry import Carry
from .course import Course
from .denoiser import Denoiser, Pass, Prediction
from .result import Decode, IntArray, Step
from .trace import Draft, Forward, Growth, Took, Trace

logger = logging.getLogger("llada_native")


class Denoising:
    """One generation over a batch of canvases.

    Parameters
    ----------
    denoiser : Denoiser
        Makes the forward passes; calls that take steps together share one.
    canvases : list of Canvas
    settled, decode : callable
        The text of an answer up to its first mask, and of a whole one, for `Step`.
    longest : int
        Positions that a prompt and its answer may have together.
    drafts : bool
        Whether steps carry, and the trace keeps, what passes would have put in the place of masks.
    carry : Carry, optional
        Keys and values that the one canvas takes over, and leaves.

    Attributes
    ----------
    seconds_forward, seconds_sample : float
        Of the passes that it took part in, whoever else did.
    """

    def __init__(self, denoiser: Denoiser, canvases: Sequence[Canvas], settled: Decode, decode: Decode, longest: int,
                 drafts: bool = False, carry: Carry | None = None) -> None:
        self.denoiser, self.canvases, self.settled, self.decode, self.drafts = denoiser, list(canvases), settled, decode, drafts
        self.seconds_forward = self.seconds_sample = 0.0
        for i, canvas in enumerate(self.canvases):
            hidden = len(canvas.masked(0, canvas.prompt_length))
            if hidden:
                logger.warning("prompt %d holds %d mask tokens: they are filled like the canvas and count against its quota, so as "
                               "many masks can remain at its end", i, hidden)
        self.courses = [Course(canvas, denoiser.backend, longest=longest, carry=carry) for canvas in self.canvases]
        self.trace = Trace([c.ids for c in self.canvases], [c.prompt_length for c in self.canvases], self.canvases[0].mask_id)
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def n_forward(self) -> int:
        return len(self.trace)

    @property
    def rows_computed(self) -> int:
        """Rows that went through the transformer."""
        return sum(took[1] for forward in self.trace.forwards for took in forward.passes)

    def steps(self) -> Iterator[Step]:
        """Run to the end; each item is a step that has been taken. Finished requests leave the batch."""
        try:
            while (step := together(self.denoiser, [self])[0]) is not None:
                yield step
        finally:
            self.close()

    def drop(self, request: int) -> None:
        """Take no further step of one request."""
        self.courses[request].finish()

    def close(self) -> None:
        """Free its caches."""
        for course in self.courses:
            course.close()

    def passes(self) -> dict[int, Pass]:
        """What each unfinished request wants computed; nothing at the end."""
        return {i: p for i, course in enumerate(self.courses) if (p := course.next_pass()) is not None}

    def take(self, active: dict[int, Pass], predictions: Sequence[Prediction]) -> Step:
        """Commit what a pass has found, one prediction for each of `passes`."""
        courses = [self.courses[i] for i in active]
        index, block = max(c.index for c in courses), max(c.block for c in courses)
        commits = [course.propose(found) for course, found in zip(courses, predictions, strict=True)]
        drafts = self._drafts(dict(zip(active, predictions, strict=True))) if self.drafts else []
        forward = Forward()
        for (i, part), course, commit in zip(active.items(), courses, commits, strict=True):
            length, begin, end = len(course.canvas.ids), course.begin, course.end
            course.commit(commit)
            computed = length if part.computed is None else len(part.computed)
            halves = 2 if course.canvas.rule.guided else 1
            forward.passes.append(Took(i, halves * (computed + len(part.twins)), len(part.open), part.rows is None, begin, end))
            forward.events += [(i, event) for event in course.events]
            for event in course.events:
                if drafts and isinstance(event, Growth):
                    drafts[i] = np.insert(drafts[i], event.position, np.full(event.added, course.canvas.mask_id, np.int32))
            if course.method.editor.edits:
                forward.unsettled[i] = course.unsettled
        if self.drafts:
            forward.drafts = [(i, Draft.of(found)) for i, found in zip(active, predictions, strict=True)]
        forward.seconds = self.seconds
        self.trace.forwards.append(forward)
        blocks = [course.method.canvas.count(course.canvas) for course in self.courses]
        n_steps = max(n * c.options.steps_per_block for n, c in zip(blocks, self.canvases, strict=True))
        answers = [d[c.prompt_length:] for d, c in zip(drafts, self.canvases, strict=True)] if self.drafts else None
        return Step(index, n_steps, block, max(blocks), forward.seconds, len(self.trace) - 1, self.trace, answers, self.settled,
                    self.decode)

    def _drafts(self, found: dict[int, Prediction]) -> list[IntArray]:
        """The canvases before a pass, with what it predicts."""
        drafts = [c.ids.copy() for c in self.canvases]
        for i, prediction in found.items():
            drafts[i][prediction.positions] = prediction.tokens
        return drafts


def together(denoiser: Denoiser, runs: Sequence[Denoising]) -> list[Step | None]:
    """The next step of every run, in one forward pass; None for those at their end.

    What a run writes does not depend on its company.
    """
    wanted = [run.passes() for run in runs]
    forward, sample = denoiser.seconds_forward, denoiser.seconds_sample
    canvases = [run.canvases[i] for run, active in zip(runs, wanted, strict=True) for i in active]
    found = iter(denoiser.predict(canvases, [part for active in wanted for part in active.values()]) if canvases else [])
    forward, sample = denoiser.seconds_forward - forward, denoiser.seconds_sample - sample
    steps: list[Step | None] = []
    for run, active in zip(runs, wanted, strict=True):
        if active:
            run.seconds_forward += forward
            run.seconds_sample += sample
        steps.append(run.take(active, list(islice(found, len(active)))) if active else None)
    return steps
