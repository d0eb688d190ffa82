"""One forward pass over any set of canvases, and what the sampler makes of it.

The canvases lie end to end; the backend computes the rows that can be revealed, the head gives their logits in vocabulary tiles.
A canvas never depends on its company: rows are bit-identical in any batch, and each canvas draws from its own random stream.
"""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

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
WANTS = (*STATISTICS, "logits")
UNKNOWN: NDArray[np.float64] = np.empty(0)
NOWHERE: NDArray[np.intp] = np.empty(0, np.intp)
NO_LOGITS: NDArray[np.float32] = np.empty((0, 0), np.float32)
NO_TOKENS: IntArray = np.empty(0, np.int32)
NO_TWIN = NO_TARGET = -1
Statistic = NDArray[np.float64] | None


class Pass(NamedTuple):
    """What one forward pass computes of one canvas.

    Attributes
    ----------
    rows : intp [computed] or None
        Positions that are computed, ascending. They see the keys and values that the caches hold of the others. None: all positions.
    open : intp [open]
        Positions whose prediction is wanted, ascending, all of them computed, and the rows that predict them (`sources`).
    caches : sequence
        A cache for the canvas and, for guidance, one for its unconditional half; or none.
    wants : set of str
        Those of `WANTS` that are wanted of the open positions.
    looked : intp [looked]
        Other positions whose most likely token is wanted, ascending, computed as the open ones are. No random numbers are drawn for them.
    window : intp [window] or None
        The positions that exist for this pass and those whose keys its caches hold, ascending. None: all.
    twins : intp [twins]
        Positions that a mask stands beside, which sees everything but them. Nothing but these masks sees such a mask.
    verified : intp [verified]
        Those of the twins whose present token is to be judged by the mask beside it.
    """

    rows: NDArray[np.intp] | None
    open: NDArray[np.intp]
    caches: Sequence[Any] = ()
    wants: frozenset[str] = frozenset()
    looked: NDArray[np.intp] = NOWHERE
    window: NDArray[np.intp] | None = None
    twins: NDArray[np.intp] = NOWHERE
    verified: NDArray[np.intp] = NOWHERE

    @property
    def computed(self) -> NDArray[np.intp] | None:
        """The positions that are computed, None for all of the canvas."""
        return self.window if self.rows is None else self.rows


@dataclass(frozen=True)
class Look:
    """Tokens and how probable they are at positions that nothing is drawn for.

    Attributes
    ----------
    positions : intp [rows]
    tokens : int32 [rows]
    probability : float64 [rows]
    """

    positions: NDArray[np.intp] = field(default_factory=lambda: NOWHERE)
    tokens: IntArray = field(default_factory=lambda: NO_TOKENS)
    probability: NDArray[np.float64] = field(default_factory=lambda: UNKNOWN)


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
    logits : float32 [rows, vocabulary]
        After guidance and penalties.
    looked : Look
        At `Pass.looked`: the most likely tokens.
    verified : Look
        At `Pass.verified`: the present tokens, as they would be predicted.
    """

    positions: NDArray[np.intp]
    tokens: IntArray
    confidence: NDArray[np.float64]
    probability: NDArray[np.float64] = field(default_factory=lambda: UNKNOWN)
    second: NDArray[np.float64] = field(default_factory=lambda: UNKNOWN)
    entropy: NDArray[np.float64] = field(default_factory=lambda: UNKNOWN)
    logits: NDArray[np.float32] = field(default_factory=lambda: NO_LOGITS)
    looked: Look = field(default_factory=Look)
    verified: Look = field(default_factory=Look)

    def part(self, rows: slice) -> Prediction:
        """Some of the open rows."""
        return Prediction(self.positions[rows], self.tokens[rows], self.confidence[rows], self.probability[rows], self.second[rows],
                          self.entropy[rows], self.logits[rows])


class Request(NamedTuple):
    """Tokens that are computed, and the rows among them whose prediction is wanted.

    They stand at the positions from `start` on, or at `slots` where those have gaps. `places` are their positions for RoPE where those are
    others, `twins` the slots of which they are masks beside, -1 for ordinary tokens.
    """

    tokens: IntArray
    rows: NDArray[np.intp]
    start: int = 0
    cache: Any = None
    slots: NDArray[np.intp] | None = None
    places: NDArray[np.intp] | None = None
    twins: NDArray[np.intp] | None = None

    def all_slots(self) -> NDArray[np.intp]:
        """`slots`, where there are no gaps too."""
        if self.slots is not None:
            return self.slots
        slots = np.arange(self.start, self.start + len(self.tokens))
        return slots if self.twins is None else np.where(self.twins == NO_TWIN, slots, NO_TWIN)

    def all_places(self) -> NDArray[np.intp]:
        """`places`, where they are the slots too."""
        if self.places is not None:
            return self.places
        return self.all_slots() if self.twins is None else np.where(self.twins == NO_TWIN, self.all_slots(), self.twins)

    @classmethod
    def of(cls, tokens: IntArray, part: Pass, half: int, mask_id: int) -> Request:
        """A pass over a canvas, or over its unconditional half."""
        cache = part.caches[half] if part.caches else None
        wanted = np.union1d(part.open, part.looked) if len(part.looked) else part.open
        where, window, start, slots, places = part.computed, part.window, 0, None, None
        if where is not None:
            tokens, wanted, places = tokens[where], np.searchsorted(where, wanted), where
            slots = where if window is None else np.searchsorted(window, where)
            start = int(slots[0])
            if int(slots[-1]) - start == len(slots) - 1:
                slots = None  # no gaps
        if window is None or int(window[-1]) == len(window) - 1:
            places = None  # the slots
        if not len(part.twins):
            return cls(tokens, wanted, start, cache, slots, places)

        count, beside = len(tokens), part.twins if window is None else np.searchsorted(window, part.twins)
        return cls(np.concatenate([tokens, np.full(len(beside), mask_id, np.int32)]),
                   np.concatenate([wanted, count + np.searchsorted(part.twins, part.verified)]), start, cache,
                   None if slots is None else np.concatenate([slots, np.full(len(beside), NO_TWIN)]),
                   None if places is None else np.concatenate([places, part.twins]),
                   np.concatenate([np.full(count, NO_TWIN), beside]))


def sources(positions: NDArray[np.intp], shifted: bool) -> NDArray[np.intp]:
    """The rows that predict positions: their own or, where logits are shifted, those before them. The first one predicts itself too."""
    return np.maximum(positions - 1, 0) if shifted else positions


def _laid(parts: list[NDArray[np.intp]]) -> IntArray:
    return np.concatenate(parts).astype(np.int32)


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
        pairs = list(zip(canvases, passes, strict=True))
        requests = [Request.of(c.ids, p, 0, c.mask_id) for c, p in pairs]
        requests += [Request.of(c.unconditional(), p, 1, c.mask_id) for c, p in pairs if c.rule.guided]
        for canvas in canvases:
            if canvas.rule.penalised:
                canvas.rule.seen = canvas.greedy.seen = canvas.seen()
        asked = [_Asked(i, len(canvases), c, p) for i, (c, p) in enumerate(pairs)]
        owners = np.concatenate([a.owners for a in asked])
        targets = np.concatenate([a.targets() for a in asked]) if any(len(p.verified) for p in passes) else None
        wants = passes[0].wants.union(*(p.wants for p in passes[1:]))
        drawn = self._draw(self.hidden(requests), canvases, owners, wants, targets)

        clock = time.perf_counter()
        if any(c.rule.random for c in canvases):
            self.sampler.draw_confidence(_rules(canvases), owners, drawn.confidence)
        found, end = [], 0
        for a in asked:
            begin, end = end, end + len(a.owners)
            found.append(a.answer(drawn, begin))
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
        """Final-norm output that predicts the wanted rows, request after request."""
        tokens = np.concatenate([r.tokens for r in requests])
        lengths = np.array([len(r.tokens) for r in requests], np.int32)
        begins = np.cumsum(lengths) - lengths
        shifted = self.backend.config.shifted_logits
        rows = np.concatenate([begin + sources(r.rows, shifted) for begin, r in zip(begins, requests, strict=True)]).astype(np.int32)
        distinct, uses = np.unique(rows, return_inverse=True) if shifted else (rows, None)  # a first row may serve two positions
        cached = any(r.cache is not None for r in requests)
        caches = [r.cache for r in requests] if cached else None
        more: dict[str, Any] = {}
        if any(r.slots is not None for r in requests):  # they take the place of positions
            more["slots"] = _laid([r.all_slots() for r in requests])
        if any(r.places is not None for r in requests):
            more["places"] = _laid([r.all_places() for r in requests])
        if any(r.twins is not None for r in requests):
            more["twins"] = _laid([np.full(len(r.tokens), NO_TWIN) if r.twins is None else r.twins for r in requests])
        positions = np.array([r.start for r in requests], np.int32) if cached and "slots" not in more else None
        clock = time.perf_counter()
        with self._named("forward pass", f"{len(lengths)} request(s) of {lengths.min()} to {lengths.max()} tokens, {len(tokens)} rows, "
                                         f"{len(distinct)} of them wanted"):
            out = self.backend.hidden(tokens, lengths, distinct, positions, caches, **more)
        self.seconds_forward += time.perf_counter() - clock
        self.n_forward += 1
        self.rows_computed += len(tokens)
        return out if len(distinct) == len(rows) else out[uses]

    def logits(self, hidden: NDArray[Any], out: NDArray[np.float32]) -> None:
        """out[rows, vocabulary]"""
        for begin, end, tile in self._tiles(hidden, VOCABULARY_TILE):
            out[:, begin:end] = tile

    def _draw(self, hidden: NDArray[Any], canvases: Sequence[Canvas], owners: IntArray, wants: frozenset[str],
              targets: IntArray | None) -> _Columns:
        """Token, confidence and wanted statistics of every row; hidden states of guided rows follow those of all rows."""
        rules = _rules(canvases)
        whole = [rule.filtered for rule in rules]
        if not any(whole):
            return self._draw_group(hidden, canvases, owners, VOCABULARY_TILE, wants, targets)
        groups = list(self._groups(np.array(whole)[owners]))
        if len(groups) == 1:
            return self._draw_group(hidden, canvases, owners, groups[0][1], wants, targets)
        found = _Columns.of(len(owners), wants, self.backend.config.vocabulary)
        guided = np.array([rule.guided for rule in rules])[owners]
        partner = len(owners) + np.cumsum(guided) - 1
        for index, width in groups:
            part = self._draw_group(hidden[np.concatenate([index, partner[index][guided[index]]])], canvases, owners[index], width, wants,
                                    None if targets is None else targets[index])
            for column, values in zip(found.columns(), part.columns(), strict=True):
                column[index] = values
        return found

    def _draw_group(self, hidden: NDArray[Any], canvases: Sequence[Canvas], owners: IntArray, width: int, wants: frozenset[str],
                    targets: IntArray | None) -> _Columns:
        """Those of rows that go through the sampler together, in tiles of one width."""
        found = _Columns.of(len(owners), wants, self.backend.config.vocabulary)
        if not len(owners):  # a pass that fills caches alone
            return found
        self._consume(hidden, _rules(canvases), owners, width, targets, found.logits)
        clock = time.perf_counter()
        bad = self.sampler.finish(found.tokens, found.confidence, found.probability, found.second, found.entropy)
        if bad >= 0:
            raise NonFiniteLogitsError(f"{self._engine()}: {canvases[owners[bad] % len(canvases)].name}: {DAMAGED}")
        self.seconds_sample += time.perf_counter() - clock
        return found

    def _groups(self, whole: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], int]]:
        """Rows that go through the sampler together, and the width of their tiles: `whole` rows need all of their logits at once."""
        if not whole.all():
            yield np.flatnonzero(~whole), VOCABULARY_TILE
        rows = np.flatnonzero(whole)
        for begin in range(0, len(rows), WHOLE_ROWS):
            yield rows[begin:begin + WHOLE_ROWS], self.backend.config.vocabulary

    def _consume(self, hidden: NDArray[Any], rules: list[_sampler.Rule], owners: IntArray, width: int,
                 targets: IntArray | None = None, logits: NDArray[np.float32] | None = None) -> None:
        """Let the sampler see all logits, tile by tile; `logits` [rows, vocabulary] are what it makes of them."""
        self.sampler.begin(rules, owners, targets)
        for begin, end, tile in self._tiles(hidden, width):
            clock = time.perf_counter()
            self.sampler.consume(tile, begin)
            if logits is not None:
                logits[:, begin:end] = tile[:len(owners)]
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


def _rules(canvases: Sequence[Canvas]) -> list[_sampler.Rule]:
    """Those of the open rows, then those of the rows that are only looked at."""
    return [c.rule for c in canvases] + [c.greedy for c in canvases]


class _Columns(NamedTuple):
    """What the sampler says of rows; [rows] each, logits [rows, vocabulary]."""

    tokens: IntArray
    confidence: NDArray[np.float64]
    probability: Statistic
    second: Statistic
    entropy: Statistic
    logits: NDArray[np.float32] | None

    @classmethod
    def of(cls, rows: int, wants: frozenset[str], vocabulary: int) -> _Columns:
        probability, second, entropy = (np.empty(rows) if name in wants else None for name in STATISTICS)
        return cls(np.empty(rows, np.intc), np.empty(rows), probability, second, entropy,
                   np.empty((rows, vocabulary), np.float32) if "logits" in wants else None)

    def prediction(self, positions: NDArray[np.intp], rows: slice | NDArray[np.intp]) -> Prediction:
        probability, second, entropy = (UNKNOWN if c is None else c[rows] for c in (self.probability, self.second, self.entropy))
        return Prediction(positions, self.tokens[rows], self.confidence[rows], probability, second, entropy,
                          NO_LOGITS if self.logits is None else self.logits[rows])

    def columns(self) -> list[NDArray[Any]]:
        return [c for c in (self.tokens, self.confidence, self.probability, self.second, self.entropy, self.logits) if c is not None]


class _Asked:
    """The rows of one request that the sampler sees, in the order of its hidden states: open and looked-at ones, then verified ones.

    `owners` are the indices of their rules: that of request i's open rows is rule i, that of its others rule i + requests.
    """

    def __init__(self, index: int, requests: int, canvas: Canvas, part: Pass) -> None:
        self.canvas, self.part = canvas, part
        self.only_open = not len(part.looked) and not len(part.verified)  # nearly always
        if self.only_open:
            self.owners = np.full(len(part.open), index, np.int32)
            return
        self.is_open = np.concatenate([part.open, part.looked]).argsort(kind="stable") < len(part.open)
        self.owners = np.full(len(self.is_open) + len(part.verified), index + requests, np.int32)
        self.owners[:len(self.is_open)][self.is_open] = index

    def targets(self) -> IntArray:
        """The present tokens of verified rows; the others are to be drawn."""
        targets = np.full(len(self.owners), NO_TARGET, np.int32)
        targets[len(targets) - len(self.part.verified):] = self.canvas.ids[self.part.verified]
        return targets

    def answer(self, drawn: _Columns, begin: int) -> Prediction:
        part, end = self.part, begin + len(self.owners)
        if self.only_open:
            return drawn.prediction(part.open, slice(begin, end))
        found, middle = drawn.prediction(part.open, np.flatnonzero(self.is_open) + begin), begin + len(self.is_open)
        others = np.flatnonzero(~self.is_open) + begin
        return replace(found, looked=Look(part.looked, drawn.tokens[others], drawn.confidence[others]),
                       verified=Look(part.verified, drawn.tokens[middle:end], drawn.confidence[middle:end]))


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
