"""The denoising loop: blocks from left to right, steps within a block, quotas within a step.

A batch is a list of canvases of any length. Each step lays the active ones end to end, asks the backend for the rows that can be
revealed, and writes the surest tokens. A canvas never depends on its company: rows are bit-identical in any batch, and each canvas
draws from its own random stream.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from . import _sampler
from .backend import Backend
from .errors import NonFiniteLogitsError
from .options import GenerationOptions
from .result import Decode, IntArray, Step

logger = logging.getLogger("llada_native")

# Logits in flight: [rows, VOCABULARY_TILE]. A fixed number, because draws are taken tile by tile.
VOCABULARY_TILE = 4096


def transfer_quotas(masks: int, steps: int) -> list[int]:
    """Tokens to reveal in each step: as even as can be, the larger shares first (`get_num_transfer_tokens`)."""
    share, extra = divmod(masks, steps)
    return [share + (i < extra) for i in range(steps)]


def random_streams(seed: int | Sequence[int] | None, requests: int) -> list[np.random.BitGenerator]:
    """One independent stream a request.

    One integer is the seed of the batch, whose i-th child request i draws from. A sequence gives every request a seed of its own:
    it then draws the same numbers in any batch as alone with that seed.
    """
    if seed is None or isinstance(seed, int):
        children = np.random.SeedSequence(seed).spawn(requests)
    else:
        children = [np.random.SeedSequence(s).spawn(1)[0] for s in seed]
    return [np.random.PCG64(child) for child in children]


class Canvas:
    """One request: its prompt, and the answer as it stands."""

    def __init__(self, prompt: IntArray, options: GenerationOptions, stream: int) -> None:
        self.prompt_length = len(prompt)
        self.stream = stream
        self.ids = np.concatenate([prompt, np.full(options.gen_length, options.mask_id, np.int32)]).astype(np.int32)
        self.given = self.ids != options.mask_id  # what guidance hides
        self.mask_id = options.mask_id
        self.commit_step = np.full(options.gen_length, -1, np.int32)
        self.confidence = np.full(options.gen_length, np.nan)

    @property
    def answer(self) -> IntArray:
        return self.ids[self.prompt_length:]

    def masked(self, begin: int, end: int) -> NDArray[np.intp]:
        """Masked positions in [begin, end)."""
        return np.flatnonzero(self.ids[begin:end] == self.mask_id) + begin

    def unconditional(self) -> IntArray:
        """The canvas with everything that was given hidden."""
        return np.where(self.given, np.int32(self.mask_id), self.ids)

    def commit(self, positions: NDArray[np.intp], tokens: IntArray, confidence: NDArray[np.float64], step: int) -> None:
        self.ids[positions] = tokens
        inside = (positions >= self.prompt_length) & (tokens != self.mask_id)
        where = positions[inside] - self.prompt_length
        self.commit_step[where] = step
        self.confidence[where] = confidence[inside]


class Denoising:
    """One generation over a batch of canvases.

    Parameters
    ----------
    backend : Backend
    prompts : list of int32 [length]
    options : GenerationOptions
    streams : list of numpy.random.BitGenerator
        One a prompt.
    settled : callable
        The text of an answer up to its first mask, for `Step.text`.
    """

    def __init__(self, backend: Backend, prompts: Sequence[IntArray], options: GenerationOptions,
                 streams: Sequence[np.random.BitGenerator], settled: Decode) -> None:
        self.backend, self.options, self.settled = backend, options, settled
        self.canvases = [Canvas(p, options, i) for i, p in enumerate(prompts)]
        for i, canvas in enumerate(self.canvases):
            hidden = len(canvas.masked(0, canvas.prompt_length))
            if hidden:
                logger.warning("prompt %d holds %d mask tokens: they are filled like the canvas and count against its quota, so as "
                               "many masks can remain at its end", i, hidden)
        # Rows that one step can reveal: every mask up to the end of the last block.
        capacity = sum(len(c.masked(0, len(c.ids))) for c in self.canvases)
        self.sampler = _sampler.RowSampler(capacity, options.temperature, options.cfg_scale, options.suppressed, options.discounted,
                                           streams)
        copies = 2 if options.cfg_scale > 0 else 1
        self.tile = np.empty(copies * capacity * min(VOCABULARY_TILE, backend.config.vocabulary), np.float32)
        self.tokens, self.confidence, self.chosen = np.empty(capacity, np.intc), np.empty(capacity), np.empty(capacity, np.intc)
        self.n_forward = self.rows_computed = 0
        self.seconds_forward = self.seconds_sample = 0.0
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def steps(self) -> Iterator[Step]:
        """Run the schedule; each item is a step that has been taken."""
        o = self.options
        for block in range(o.blocks):
            begin, end = block * o.block_length, (block + 1) * o.block_length
            quotas = [transfer_quotas(len(c.masked(c.prompt_length + begin, c.prompt_length + end)), o.steps_per_block)
                      for c in self.canvases]
            for i in range(o.steps_per_block):
                quota = {c.stream: q[i] for c, q in zip(self.canvases, quotas, strict=True) if q[i] > 0}
                if quota:  # an empty quota costs no forward
                    yield self._step(block, block * o.steps_per_block + i, end, quota)

    def _step(self, block: int, index: int, end: int, quota: dict[int, int]) -> Step:
        active = [self.canvases[i] for i in quota]
        open_rows = [c.masked(0, c.prompt_length + end) for c in active]
        counts = [len(rows) for rows in open_rows]
        requests = np.repeat(np.array(list(quota), np.int32), counts)

        clock = time.perf_counter()
        hidden = self._hidden(active, open_rows)
        self.seconds_forward += time.perf_counter() - clock
        self._sample(hidden, requests)
        clock = time.perf_counter()
        if self.options.remasking == "random":
            self.sampler.draw_confidence(requests, self.confidence)

        nothing = np.empty(0, np.int32)
        positions, tokens = [nothing] * len(self.canvases), [nothing] * len(self.canvases)
        confidence = [np.empty(0)] * len(self.canvases)
        first = 0
        for canvas, rows, n in zip(active, open_rows, counts, strict=True):
            conf = self.confidence[first:first + n]
            k = _sampler.most_confident(conf, quota[canvas.stream], self.chosen)
            chosen = self.chosen[:k]
            drawn = self.tokens[first:first + n][chosen].astype(np.int32)
            canvas.commit(rows[chosen], drawn, conf[chosen], index)
            positions[canvas.stream], tokens[canvas.stream] = rows[chosen].astype(np.int32), drawn
            confidence[canvas.stream] = conf[chosen]
            first += n
        self.seconds_sample += time.perf_counter() - clock

        done, total = index + 1, self.options.max_steps
        return Step(index, total, block, self.options.blocks, positions, tokens, confidence,
                    [len(c.masked(0, len(c.ids))) for c in self.canvases], [c.answer.copy() for c in self.canvases],
                    self.seconds, self.seconds / done * (total - done), self.settled)

    def _hidden(self, active: list[Canvas], open_rows: list[NDArray[np.intp]]) -> NDArray[np.float32]:
        """Hidden states of the open rows; with guidance, the conditional ones and then the unconditional."""
        halves = [[c.ids for c in active]]
        if self.options.cfg_scale > 0:
            halves.append([c.unconditional() for c in active])
        flat = [ids for half in halves for ids in half]
        lengths = np.array([len(ids) for ids in flat], np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        rows = np.concatenate([start + r for start, r in zip(starts, open_rows * len(halves), strict=True)]).astype(np.int32)
        self.n_forward += 1
        self.rows_computed += int(lengths.sum())
        return self.backend.hidden(np.concatenate(flat), lengths, rows)

    def _sample(self, hidden: NDArray[np.float32], requests: IntArray) -> None:
        """Tokens and confidences of all rows, one vocabulary tile at a time."""
        vocabulary, rows = self.backend.config.vocabulary, len(requests)
        self.sampler.begin(rows)
        for begin in range(0, vocabulary, VOCABULARY_TILE):
            end = min(begin + VOCABULARY_TILE, vocabulary)
            tile = self.tile[:len(hidden) * (end - begin)].reshape(len(hidden), end - begin)
            clock = time.perf_counter()
            self.backend.head(hidden, begin, end, tile)
            then = time.perf_counter()
            self.sampler.consume(tile, begin, requests)
            self.seconds_forward += then - clock
            self.seconds_sample += time.perf_counter() - then
        bad = self.sampler.finish(self.tokens, self.confidence)
        if bad >= 0:
            raise NonFiniteLogitsError(f"prompt {requests[bad]}: the logits of a row are NaN or have no finite value; "
                                       "the model's weights are damaged")
