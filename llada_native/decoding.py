"""The denoising loop: every canvas takes its turns, all of them in one forward pass, and commits what the round chose."""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np

from .backend import Backend
from .canvas import Canvas, Turn
from .denoiser import Denoiser
from .result import Decode, Step

logger = logging.getLogger("llada_native")


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
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def steps(self) -> Iterator[Step]:
        """Run the schedule; each item is a step that has been taken."""
        turns = [c.turns() for c in self.canvases]
        while True:
            active = {i: turn for i, it in enumerate(turns) if (turn := next(it, None)) is not None}
            if not active:
                return
            yield self._step(active)

    def _step(self, active: dict[int, Turn]) -> Step:
        canvases = [self.canvases[i] for i in active]
        choices = self.denoiser.choose(canvases, list(active.values()))
        nothing = np.empty(0, np.int32)
        positions, tokens = [nothing] * len(self.canvases), [nothing] * len(self.canvases)
        confidence = [np.empty(0)] * len(self.canvases)
        for (i, turn), canvas, choice in zip(active.items(), canvases, choices, strict=True):
            canvas.commit(choice.positions, choice.tokens, choice.confidence, turn.index)
            positions[i], tokens[i] = choice.positions.astype(np.int32), choice.tokens
            confidence[i] = choice.confidence

        index, total = max(turn.index for turn in active.values()), max(c.options.max_steps for c in self.canvases)
        return Step(index, total, max(turn.block for turn in active.values()), max(c.options.blocks for c in self.canvases),
                    positions, tokens, confidence, [len(c.masked(0, len(c.ids))) for c in self.canvases],
                    [c.answer.copy() for c in self.canvases], self.seconds, self.seconds / (index + 1) * (total - index - 1), self.settled)
