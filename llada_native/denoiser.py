"""One forward pass over any set of canvases, and what the sampler makes of it.

The canvases lie end to end; the backend computes the rows that can be revealed, the head gives their logits in vocabulary tiles.
A canvas never depends on its company: rows are bit-identical in any batch, and each canvas draws from its own random stream.
"""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _sampler
from .backend import Backend
from .canvas import Canvas, Turn
from .errors import EngineError, ModelMemoryError, NonFiniteLogitsError
from .result import IntArray

# Logits in flight: [rows, VOCABULARY_TILE]. A fixed number, because draws are taken tile by tile.
VOCABULARY_TILE = 4096
# Rows of requests with top-k or top-p need all of their logits at once: so many of them at a time.
WHOLE_ROWS = 32
DAMAGED = "the logits of a row are NaN or have no finite value; the model's weights are damaged"


@dataclass(frozen=True)
class Request:
    """Tokens from one position on, and the rows among them whose hidden state is wanted."""

    tokens: IntArray
    rows: NDArray[np.intp]
    start: int = 0
    cache: Any = None


@dataclass(frozen=True)
class Choice:
    """What a round reveals in one canvas, surest first."""

    positions: NDArray[np.intp]
    tokens: IntArray
    confidence: NDArray[np.float64]


class Denoiser:
    """Forward passes of one backend, counted and timed.

    Raises from its methods
    -----------------------
    EngineError, ModelMemoryError, NonFiniteLogitsError
        The backend failed; the message says in what, with which shapes.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.sampler = _sampler.RowSampler()
        self.tile = np.empty(0, np.float32)
        self.n_forward = self.rows_computed = 0
        self.seconds_forward = self.seconds_sample = 0.0

    def choose(self, canvases: Sequence[Canvas], turns: Sequence[Turn]) -> list[Choice]:
        """The surest tokens of each canvas; nothing is committed."""
        open_rows = [c.masked(c.start, turn.end) for c, turn in zip(canvases, turns, strict=True)]
        requests = [Request(c.ids[c.start:], rows - c.start, c.start, c.cache) for c, rows in zip(canvases, open_rows, strict=True)]
        requests += [Request(c.unconditional()[c.start:], rows - c.start, c.start, c.unconditional_cache)
                     for c, rows in zip(canvases, open_rows, strict=True) if c.rule.guided]
        rules = [c.rule for c in canvases]
        for canvas in canvases:
            if canvas.rule.penalised:
                canvas.rule.seen = canvas.seen()
        counts = [len(rows) for rows in open_rows]
        owners = np.repeat(np.arange(len(canvases), dtype=np.int32), counts)
        tokens, confidence = self._draw(self.hidden(requests), rules, owners)

        clock = time.perf_counter()
        if any(rule.random for rule in rules):
            self.sampler.draw_confidence(rules, owners, confidence)
        choices, first = [], 0
        chosen = np.empty(len(owners), np.intc)
        for turn, rows, n in zip(turns, open_rows, counts, strict=True):
            k = _sampler.most_confident(confidence[first:first + n], turn.quota, chosen)
            index = first + chosen[:k]
            choices.append(Choice(rows[chosen[:k]], tokens[index], confidence[index]))
            first += n
        self.seconds_sample += time.perf_counter() - clock
        return choices

    def log_probabilities(self, requests: Sequence[Request], rule: _sampler.Rule, targets: IntArray) -> NDArray[np.float64]:
        """log softmax(logits)[target] of all rows of requests under one rule; with guidance, unconditional requests follow."""
        hidden = self.hidden(requests)
        owners = np.zeros(len(targets), np.int32)
        out = np.empty(len(targets))
        self._consume(hidden, [rule], owners, VOCABULARY_TILE, targets)
        if self.sampler.log_probabilities(out) >= 0:
            raise NonFiniteLogitsError(f"{self._engine()}: {DAMAGED}")
        return out

    def hidden(self, requests: Sequence[Request]) -> NDArray[Any]:
        """Final-norm output of the wanted rows, request after request."""
        tokens = np.concatenate([r.tokens for r in requests])
        lengths = np.array([len(r.tokens) for r in requests], np.int32)
        begins = np.cumsum(lengths) - lengths
        rows = np.concatenate([begin + r.rows for begin, r in zip(begins, requests, strict=True)]).astype(np.int32)
        cached = any(r.cache is not None for r in requests)
        positions = np.array([r.start for r in requests], np.int32) if cached else None
        caches = [r.cache for r in requests] if cached else None
        clock = time.perf_counter()
        with self._named("forward pass", f"{len(lengths)} request(s) of {lengths.min()} to {lengths.max()} tokens, {len(tokens)} rows, "
                                         f"{len(rows)} of them wanted"):
            out = self.backend.hidden(tokens, lengths, rows, positions, caches)
        self.seconds_forward += time.perf_counter() - clock
        self.n_forward += 1
        self.rows_computed += len(tokens)
        return out

    def logits(self, hidden: NDArray[Any], out: NDArray[np.float32]) -> None:
        """out[rows, vocabulary]"""
        for begin, end, tile in self._tiles(hidden, VOCABULARY_TILE):
            out[:, begin:end] = tile

    def _draw(self, hidden: NDArray[Any], rules: list[_sampler.Rule], owners: IntArray) -> tuple[IntArray, NDArray[np.float64]]:
        """Token and confidence of every row; hidden states of guided rows follow those of all rows."""
        tokens, confidence = np.empty(len(owners), np.intc), np.empty(len(owners))
        guided = np.array([rule.guided for rule in rules])[owners]
        partner = len(owners) + np.cumsum(guided) - 1
        for index, width in self._groups(rules, owners):
            part = hidden if len(index) == len(owners) else hidden[np.concatenate([index, partner[index][guided[index]]])]
            found = np.empty(len(index), np.intc), np.empty(len(index))
            self._consume(part, rules, owners[index], width)
            clock = time.perf_counter()
            bad = self.sampler.finish(*found)
            if bad >= 0:
                raise NonFiniteLogitsError(f"{self._engine()}: prompt {owners[index][bad]}: {DAMAGED}")
            tokens[index], confidence[index] = found
            self.seconds_sample += time.perf_counter() - clock
        return tokens, confidence

    def _groups(self, rules: list[_sampler.Rule], owners: IntArray) -> Iterator[tuple[NDArray[np.intp], int]]:
        """Rows that go through the sampler together, and the width of their tiles."""
        whole = np.array([rule.filtered for rule in rules])[owners]
        if not whole.all():
            yield np.flatnonzero(~whole), VOCABULARY_TILE
        rows = np.flatnonzero(whole)
        for begin in range(0, len(rows), WHOLE_ROWS):
            yield rows[begin:begin + WHOLE_ROWS], self.backend.config.vocabulary

    def _consume(self, hidden: NDArray[Any], rules: list[_sampler.Rule], owners: IntArray, width: int,
                 targets: IntArray | None = None) -> None:
        self.sampler.begin(rules, owners, targets)
        for begin, _, tile in self._tiles(hidden, width):
            clock = time.perf_counter()
            self.sampler.consume(tile, begin)
            self.seconds_sample += time.perf_counter() - clock

    def _tiles(self, hidden: NDArray[Any], width: int) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """The logits of tokens begin to end, tile after tile in one buffer."""
        vocabulary, rows = self.backend.config.vocabulary, len(hidden)
        if len(self.tile) < rows * min(width, vocabulary):
            self.tile = np.empty(rows * min(width, vocabulary), np.float32)
        for begin in range(0, vocabulary, width):
            end = min(begin + width, vocabulary)
            tile = self.tile[:rows * (end - begin)].reshape(rows, end - begin)
            clock = time.perf_counter()
            with self._named("head", f"{rows} rows, tokens {begin} to {end}"):
                self.backend.head(hidden, begin, end, tile)
            self.seconds_forward += time.perf_counter() - clock
            yield begin, end, tile

    def _engine(self) -> str:
        return f"backend {self.backend.name!r}"

    def _named(self, what: str, shapes: str) -> _Named:
        return _Named(self, what, shapes)


class _Named:
    """Says in what, and with which shapes, the backend failed. A class: cheaper than a generator on every tile."""

    def __init__(self, denoiser: Denoiser, what: str, shapes: str) -> None:
        self.denoiser, self.what, self.shapes = denoiser, what, shapes

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        place = f"{self.denoiser._engine()}, {self.what} ({self.shapes})"
        if isinstance(error, MemoryError):
            raise ModelMemoryError(f"{place}: an allocation was refused") from error
        if isinstance(error, EngineError):
            raise EngineError(f"{place}: {error}") from error
