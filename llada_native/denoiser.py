"""One forward pass over any set of canvases, and what the sampler makes of it.

The canvases lie end to end; the backend computes the rows that can be revealed, the head gives their logits in vocabulary tiles.
A canvas never depends on its company: rows are bit-identical in any batch, and each canvas draws from its own random stream.
"""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _sampler
from .backend import Backend
from .canvas import Canvas
from .errors import EngineError, ModelMemoryError, NonFiniteLogitsError
from .result import IntArray

# Logits in flight: [rows, VOCABULARY_TILE]. A fixed number, because draws are taken tile by tile.
VOCABULARY_TILE = 4096
# Rows of requests with top-k or top-p need all of their logits at once: so many of them at a time.
WHOLE_ROWS = 32
DAMAGED = "the logits of a row are NaN or have no finite value; the model's weights are damaged"


# What a selector may want to know of a row beside token and confidence.
STATISTICS = ("probability", "second", "entropy")
UNKNOWN: NDArray[np.float64] = np.empty(0)
Statistic = NDArray[np.float64] | None
Columns = tuple[IntArray, NDArray[np.float64], Statistic, Statistic, Statistic]  # tokens, confidence, STATISTICS; [rows] each


@dataclass(frozen=True)
class Pass:
    """What one forward pass computes of one canvas.

    Attributes
    ----------
    rows : intp [computed] or None
        Positions that are computed, ascending. They see the keys and values that the caches hold of the others. None: all positions.
    open : intp [open]
        Positions whose prediction is wanted, ascending, all of them computed.
    caches : sequence
        A cache for the canvas and, for guidance, one for its unconditional half; or none.
    wants : set of str
        Those of `STATISTICS` that are wanted.
    """

    rows: NDArray[np.intp] | None
    open: NDArray[np.intp]
    caches: Sequence[Any] = ()
    wants: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Prediction:
    """What the sampler makes of the open rows of one canvas. Statistics that nobody wants are empty.

    Attributes
    ----------
    positions : intp [rows]
    tokens : int32 [rows]
    confidence : float64 [rows]
        As `GenerationOptions.remasking` has it.
    probability : float64 [rows]
        Of the token, under softmax of the logits after guidance and penalties.
    second : float64 [rows]
        The second largest probability.
    entropy : float64 [rows]
        Of that softmax, in nats.
    """

    positions: NDArray[np.intp]
    tokens: IntArray
    confidence: NDArray[np.float64]
    probability: NDArray[np.float64] = field(default_factory=lambda: UNKNOWN)
    second: NDArray[np.float64] = field(default_factory=lambda: UNKNOWN)
    entropy: NDArray[np.float64] = field(default_factory=lambda: UNKNOWN)


@dataclass(frozen=True)
class Request:
    """Tokens that are computed, and the rows among them whose hidden state is wanted.

    They stand at the positions from `start` on, or at `slots` where those have gaps.
    """

    tokens: IntArray
    rows: NDArray[np.intp]
    start: int = 0
    cache: Any = None
    slots: NDArray[np.intp] | None = None

    @classmethod
    def of(cls, tokens: IntArray, part: Pass, half: int) -> Request:
        """A pass over a canvas, or over its unconditional half."""
        cache = part.caches[half] if part.caches else None
        if part.rows is None:
            return cls(tokens, part.open, 0, cache)
        start, end = int(part.rows[0]), int(part.rows[-1]) + 1
        if end - start == len(part.rows):
            return cls(tokens[start:end], part.open - start, start, cache)
        return cls(tokens[part.rows], np.searchsorted(part.rows, part.open), start, cache, part.rows)


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

    def predict(self, canvases: Sequence[Canvas], passes: Sequence[Pass]) -> list[Prediction]:
        """What the model would write into the open rows of each canvas; nothing is written."""
        requests = [Request.of(c.ids, p, 0) for c, p in zip(canvases, passes, strict=True)]
        requests += [Request.of(c.unconditional(), p, 1) for c, p in zip(canvases, passes, strict=True) if c.rule.guided]
        rules = [c.rule for c in canvases]
        for canvas in canvases:
            if canvas.rule.penalised:
                canvas.rule.seen = canvas.seen()
        counts = [len(p.open) for p in passes]
        owners = np.repeat(np.arange(len(canvases), dtype=np.int32), counts)
        wants = passes[0].wants.union(*(p.wants for p in passes[1:]))
        tokens, confidence, *statistics = self._draw(self.hidden(requests), rules, owners, wants)

        clock = time.perf_counter()
        if any(rule.random for rule in rules):
            self.sampler.draw_confidence(rules, owners, confidence)
        found, end = [], 0
        for p, n in zip(passes, counts, strict=True):
            begin, end = end, end + n
            found.append(Prediction(p.open, tokens[begin:end], confidence[begin:end],
                                    *(UNKNOWN if column is None else column[begin:end] for column in statistics)))
        self.seconds_sample += time.perf_counter() - clock
        return found

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
        caches = [r.cache for r in requests] if cached else None
        gaps: dict[str, Any] = {}  # slots take the place of positions
        if any(r.slots is not None for r in requests):
            gaps["slots"] = np.concatenate([np.arange(r.start, r.start + len(r.tokens)) if r.slots is None else r.slots
                                            for r in requests]).astype(np.int32)
        positions = np.array([r.start for r in requests], np.int32) if cached and not gaps else None
        clock = time.perf_counter()
        with self._named("forward pass", f"{len(lengths)} request(s) of {lengths.min()} to {lengths.max()} tokens, {len(tokens)} rows, "
                                         f"{len(rows)} of them wanted"):
            out = self.backend.hidden(tokens, lengths, rows, positions, caches, **gaps)
        self.seconds_forward += time.perf_counter() - clock
        self.n_forward += 1
        self.rows_computed += len(tokens)
        return out

    def logits(self, hidden: NDArray[Any], out: NDArray[np.float32]) -> None:
        """out[rows, vocabulary]"""
        for begin, end, tile in self._tiles(hidden, VOCABULARY_TILE):
            out[:, begin:end] = tile

    def _draw(self, hidden: NDArray[Any], rules: list[_sampler.Rule], owners: IntArray,
              wants: frozenset[str] = frozenset()) -> Columns:
        """Token, confidence and wanted statistics of every row; hidden states of guided rows follow those of all rows."""
        found = _columns(len(owners), wants)
        guided = np.array([rule.guided for rule in rules])[owners]
        partner = len(owners) + np.cumsum(guided) - 1
        for index, width in self._groups(rules, owners):
            everything = len(index) == len(owners)
            part = found if everything else _columns(len(index), wants)
            self._consume(hidden if everything else hidden[np.concatenate([index, partner[index][guided[index]]])], rules, owners[index],
                          width)
            clock = time.perf_counter()
            bad = self.sampler.finish(*part)
            if bad >= 0:
                raise NonFiniteLogitsError(f"{self._engine()}: prompt {owners[index][bad]}: {DAMAGED}")
            if not everything:
                pairs: Iterator[tuple[Any, Any]] = zip(found, part, strict=True)
                for column, values in pairs:
                    if column is not None:
                        column[index] = values
            self.seconds_sample += time.perf_counter() - clock
        return found

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


def _columns(rows: int, wants: frozenset[str]) -> Columns:
    probability, second, entropy = (np.empty(rows) if name in wants else None for name in STATISTICS)
    return np.empty(rows, np.intc), np.empty(rows), probability, second, entropy


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
