"""The denoising loop: every request says what it wants computed, one forward pass does so for all, and each commits what it chose."""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from .backend import Backend
from .canvas import Canvas
from .carry import Carry
from .course import Course
from .denoiser import Denoiser, Pass, Prediction
from .result import Decode, IntArray, Step
from .trace import Draft, Forward, Took, Trace

logger = logging.getLogger("llada_native")


class Denoising:
    """One generation over a batch of canvases.

    Parameters
    ----------
    backend : Backend
    canvases : list of Canvas
    settled, decode : callable
        The text of an answer up to its first mask, and of a whole one, for `Step`.
    longest : int
        Positions that a prompt and its answer may have together.
    drafts : bool
        Whether steps carry, and the trace keeps, what passes would have put in the place of masks.
    carry : Carry, optional
        Keys and values that the one canvas takes over, and leaves.
    """

    def __init__(self, backend: Backend, canvases: Sequence[Canvas], settled: Decode, decode: Decode, longest: int,
                 drafts: bool = False, carry: Carry | None = None) -> None:
        self.canvases, self.settled, self.decode, self.drafts = list(canvases), settled, decode, drafts
        self.denoiser = Denoiser(backend)
        for i, canvas in enumerate(self.canvases):
            hidden = len(canvas.masked(0, canvas.prompt_length))
            if hidden:
                logger.warning("prompt %d holds %d mask tokens: they are filled like the canvas and count against its quota, so as "
                               "many masks can remain at its end", i, hidden)
        self.courses = [Course(canvas, backend, longest=longest, carry=carry) for canvas in self.canvases]
        self.trace = Trace([c.ids for c in self.canvases], [c.prompt_length for c in self.canvases], self.canvases[0].mask_id)
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
        commits = [course.propose(found) for course, found in zip(courses, predictions, strict=True)]
        drafts = self._drafts(dict(zip(active, predictions, strict=True))) if self.drafts else None
        forward = Forward()
        for (i, part), course, commit in zip(active.items(), courses, commits, strict=True):
            length, begin, end = len(course.canvas.ids), course.begin, course.end
            course.commit(commit)
            computed = length if part.computed is None else len(part.computed)
            halves = 2 if course.canvas.rule.guided else 1
            forward.passes.append(Took(i, halves * (computed + len(part.twins)), len(part.open), part.rows is None, begin, end))
            forward.events += [(i, event) for event in course.events]
            if course.method.editor.edits:
                forward.unsettled[i] = course.unsettled
        if self.drafts:
            forward.drafts = [(i, Draft.of(found)) for i, found in zip(active, predictions, strict=True)]
        forward.seconds = self.seconds
        self.trace.forwards.append(forward)
        blocks = [course.method.canvas.count(course.canvas) for course in self.courses]
        n_steps = max(n * c.options.steps_per_block for n, c in zip(blocks, self.canvases, strict=True))
        return Step(index, n_steps, block, max(blocks), forward.seconds, len(self.trace) - 1, self.trace, drafts, self.settled,
                    self.decode)

    def _drafts(self, found: dict[int, Prediction]) -> list[IntArray]:
        drafts = [c.ids.copy() for c in self.canvases]
        for i, prediction in found.items():
            drafts[i][prediction.positions] = prediction.tokens
        return [d[c.prompt_length:] for d, c in zip(drafts, self.canvases, strict=True)]
