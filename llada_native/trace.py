"""The record of a generation: what every forward pass computed and wrote, from which any canvas on the way can be made again."""
from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .denoiser import NO_TOKENS, NOWHERE, UNKNOWN, Prediction
from .pieces import Pieces
from .result import IntArray
from .tokenizer import Tokenizer

# What a write is: a mask that became a token, a token that became another, one that became a mask again, a mask that nobody chose a
# token for.
REVEAL, EDIT, REVOKE, FILL = range(4)
KINDS = ("reveal", "edit", "revoke", "fill")

WRITES = np.dtype([("forward", np.int32), ("request", np.int32), ("kind", np.uint8), ("position", np.int32), ("token", np.int32),
                   ("confidence", np.float64)])
PASSES = np.dtype([("forward", np.int32), ("request", np.int32), ("rows", np.int32), ("open", np.int32), ("full", np.bool_),
                   ("begin", np.int32), ("end", np.int32)])
DRAFTS = np.dtype([("forward", np.int32), ("request", np.int32), ("position", np.int32), ("token", np.int32), ("confidence", np.float32)])
GROWTHS = np.dtype([("forward", np.int32), ("request", np.int32), ("position", np.int32), ("added", np.int32)])


class Write(NamedTuple):
    """Tokens of one kind that one pass wrote into one canvas, surest first."""

    kind: int
    positions: NDArray[np.intp]
    tokens: IntArray
    confidence: NDArray[np.float64]


class Growth(NamedTuple):
    """`added` masks put in before a position."""

    position: int
    added: int

    def moved(self, positions: NDArray[Any]) -> NDArray[Any]:
        """Where positions of the canvas before it are in the canvas after it."""
        return np.where(positions >= self.position, positions + self.added, positions)


class Draft(NamedTuple):
    """What a pass predicted at the open positions of a canvas, whether it wrote it or not."""

    positions: IntArray
    tokens: IntArray
    confidence: NDArray[np.float32]

    @classmethod
    def of(cls, found: Prediction) -> Draft:
        return cls(found.positions.astype(np.int32), found.tokens.astype(np.int32), found.confidence.astype(np.float32))


class Took(NamedTuple):
    """The part of a request in a pass: its rows and open positions, whether all rows were computed, and its block at [begin, end)."""

    request: int
    rows: int
    open: int
    full: bool
    begin: int
    end: int


@dataclass
class Forward:
    """One forward pass: for each request that took part, its rows, its writes, and then, if it grew, that."""

    passes: list[Took] = field(default_factory=list)
    drafts: list[tuple[int, Draft]] = field(default_factory=list)  # request, what was predicted; where it is wanted
    events: list[tuple[int, Write | Growth]] = field(default_factory=list)
    seconds: float = 0.0  # since the start, at its end
    unsettled: dict[int, int] = field(default_factory=dict)  # request: where the block begins that an editor works on


class Trace:
    """What a generation did, forward pass by forward pass.

    Parameters
    ----------
    canvases : list of int32 [prompt + gen_length]
        At the start.
    prompt_lengths : list of int
    mask_id : int

    Attributes
    ----------
    canvases, prompt_lengths, mask_id
    end_ids : list of int
        Tokens that end an answer; none in a text that is filled.
    gen_length : int or None
        Tokens of an answer that count, where its canvas has more. None: all.
    method : str
        How it was decoded, as options name it.
    tokenizer : Tokenizer or None
        What `pieces` are made with. It is not saved, nor pickled; they are.
    forwards : list of Forward
        The record as it was made; `writes`, `passes`, `growths` and `drafts` are the same as tables.
    """

    def __init__(self, canvases: Sequence[IntArray], prompt_lengths: Sequence[int], mask_id: int) -> None:
        self.canvases, self.prompt_lengths, self.mask_id = [c.copy() for c in canvases], list(prompt_lengths), mask_id
        self.end_ids: list[int] = []
        self.gen_length: int | None = None
        self.method = ""
        self.tokenizer: Tokenizer | None = None
        self._pieces = Pieces()
        self.forwards: list[Forward] = []
        self._replayed: dict[int, tuple[int, IntArray]] = {}  # request: a forward pass and the canvas after it, to go on from

    def __len__(self) -> int:
        """Forward passes."""
        return len(self.forwards)

    @property
    def writes(self) -> NDArray[Any]:
        """A row a written token: forward, request, kind (an index into `KINDS`), position, token, confidence.

        Positions count from the start of the prompt, in the canvas of that pass. Confidence is NaN for what nobody chose.
        """
        rows = [(f, r, e.kind, *one) for f, forward in enumerate(self.forwards) for r, e in forward.events if isinstance(e, Write)
                for one in zip(e.positions, e.tokens, e.confidence, strict=True)]
        return np.array(rows, WRITES)

    @property
    def passes(self) -> NDArray[Any]:
        """A row a request and forward pass: forward, request, rows computed, open positions, whether all rows were computed, and where the
        block begins and ends that was being filled."""
        return np.array([(f, *one) for f, forward in enumerate(self.forwards) for one in forward.passes], PASSES)

    @property
    def growths(self) -> NDArray[Any]:
        """A row for every time that a canvas grew, after the writes of its pass: forward, request, position, added."""
        return np.array([(f, r, *e) for f, forward in enumerate(self.forwards) for r, e in forward.events if isinstance(e, Growth)],
                        GROWTHS)

    @property
    def drafts(self) -> NDArray[Any]:
        """A row for every prediction at an open position, written or not: forward, request, position, token, confidence. Empty unless
        `generate(..., drafts=True)` has asked for it."""
        parts = [(f, r, draft) for f, forward in enumerate(self.forwards) for r, draft in forward.drafts]
        table = np.empty(sum(len(draft.positions) for _, _, draft in parts), DRAFTS)
        begin = 0
        for f, r, draft in parts:
            part = table[begin:begin + len(draft.positions)]
            part["forward"], part["request"], part["position"], part["token"], part["confidence"] = f, r, *draft
            begin += len(part)
        return table

    @property
    def pieces(self) -> Pieces:
        """Texts of its tokens; empty where it was made, or saved, without a tokenizer."""
        if self.tokenizer is None:
            return self._pieces
        last = [self.canvas(r, len(self) - 1) for r in range(len(self.canvases))]
        used = np.unique(np.concatenate([NO_TOKENS, *self.canvases, *last, self.writes["token"], self.drafts["token"]]))
        return Pieces.of(self.tokenizer, used.tolist(), last)

    @property
    def answer_lengths(self) -> list[int]:
        """Tokens of each answer before its first end token, masks not counted."""
        answers = [self.answer(r, len(self) - 1)[:self.gen_length] for r in range(len(self.canvases))]
        before = [a[:[*np.flatnonzero(np.isin(a, self.end_ids)), len(a)][0]] for a in answers]
        return [int(np.count_nonzero(a != self.mask_id)) for a in before]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Of each forward pass the time since the start, at its end."""
        return np.array([forward.seconds for forward in self.forwards])

    def canvas(self, request: int, forward: int) -> IntArray:
        """Prompt and answer of a request after a forward pass; -1 for the start.

        Raises
        ------
        TypeError, IndexError
            No such request or forward pass.
        """
        for name, found, low, count in (("request", request, 0, len(self.canvases)), ("forward", forward, -1, len(self.forwards))):
            if not isinstance(found, int | np.integer):
                raise TypeError(f"{name}: expected a whole number, found {found!r}")
            if not low <= found < count:
                raise IndexError(f"{name}: expected {low} to {count - 1}, found {found}")
        begin, ids = self._replayed.get(request, (-1, self.canvases[request]))
        if begin > forward:
            begin, ids = -1, self.canvases[request]
        ids = ids.copy()
        for done in self.forwards[begin + 1:forward + 1]:
            for of, event in done.events:
                if of != request:
                    continue
                if isinstance(event, Write):
                    ids[event.positions] = event.tokens
                else:
                    ids = np.insert(ids, event.position, np.full(event.added, self.mask_id, np.int32))
        self._replayed[request] = forward, ids.copy()
        return ids

    def added(self, forward: int) -> int:
        """Masks that canvases have grown by up to a forward pass."""
        return sum(e.added for done in self.forwards[:forward + 1] for _, e in done.events if isinstance(e, Growth))

    def written(self, request: int, forward: int) -> tuple[NDArray[np.intp], IntArray, NDArray[np.float64]]:
        """Positions, tokens and confidences of what a pass revealed, edited or took back in a request, in this order."""
        writes = [e for of, e in self.forwards[forward].events if of == request and isinstance(e, Write) and e.kind != FILL]
        if len(writes) == 1:
            return writes[0][1:]
        return (np.concatenate([NOWHERE, *(w.positions for w in writes)]), np.concatenate([NO_TOKENS, *(w.tokens for w in writes)]),
                np.concatenate([UNKNOWN, *(w.confidence for w in writes)]))

    def answer(self, request: int, forward: int) -> IntArray:
        """`canvas` without the prompt."""
        return self.canvas(request, forward)[self.prompt_lengths[request]:]

    def settled(self, request: int, forward: int) -> IntArray:
        """`answer` with masks for what an editor may change yet."""
        ids = self.canvas(request, forward)
        ids[self.forwards[forward].unsettled.get(request, len(ids)):] = self.mask_id
        return ids[self.prompt_lengths[request]:]

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to an .npz file: the tables, and the canvases at the start end to end."""
        about = {"end_ids": self.end_ids, "gen_length": self.gen_length, "method": self.method, "pieces": self.pieces.as_json()}
        with open(path, "wb") as file:
            np.savez_compressed(file, writes=self.writes, passes=self.passes, growths=self.growths, drafts=self.drafts,
                                seconds=self.seconds, about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                                canvases=np.concatenate([np.empty(0, np.int32), *self.canvases]),
                                lengths=np.array([len(c) for c in self.canvases]), prompt_lengths=np.array(self.prompt_lengths, np.int64),
                                mask_id=np.array(self.mask_id), unsettled=np.array(
                                    [(f, *one) for f, forward in enumerate(self.forwards) for one in forward.unsettled.items()],
                                    np.int32).reshape(-1, 3))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trace:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            The file is none of a trace.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                tables = dict(archive)
            trace = cls(np.split(tables["canvases"], np.cumsum(tables["lengths"])[:-1]) if len(tables["lengths"]) else [],
                        tables["prompt_lengths"].tolist(), int(tables["mask_id"]))
            trace.forwards = [Forward(seconds=float(s)) for s in tables["seconds"]]
            for f, *one in tables["passes"].tolist():
                trace.forwards[f].passes.append(Took(*one))
            about = json.loads(tables["about"].tobytes())
            trace.end_ids, trace.gen_length = [int(i) for i in about["end_ids"]], about["gen_length"]
            trace.method, trace._pieces = str(about["method"]), Pieces.from_json(about["pieces"])
            writes = tables["writes"]
            borders = np.flatnonzero(np.any([np.diff(writes[name]) for name in ("forward", "request", "kind")], axis=0)) + 1
            for part in np.split(writes, borders) if len(writes) else []:
                trace.forwards[part["forward"][0]].events.append((int(part["request"][0]), Write(
                    int(part["kind"][0]), part["position"].astype(np.intp), part["token"].copy(), part["confidence"].copy())))
            drafts = tables["drafts"]
            borders = np.flatnonzero(np.any([np.diff(drafts[name]) for name in ("forward", "request")], axis=0)) + 1
            for part in np.split(drafts, borders) if len(drafts) else []:
                trace.forwards[part["forward"][0]].drafts.append((int(part["request"][0]), Draft(
                    part["position"].copy(), part["token"].copy(), part["confidence"].copy())))
            for f, r, *growth in tables["growths"].tolist():
                trace.forwards[f].events.append((r, Growth(*growth)))
            for f, r, begin in tables["unsettled"].tolist():
                trace.forwards[f].unsettled[r] = begin
            trace._check(tables)
        except (KeyError, IndexError, TypeError, ValueError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: expected a trace, as Trace.save writes it, found another file") from error
        return trace

    def _check(self, tables: Mapping[str, NDArray[Any]]) -> None:
        """Raises IndexError or ValueError where a table names what there is not."""
        for name, dtype in (("writes", WRITES), ("passes", PASSES), ("drafts", DRAFTS), ("growths", GROWTHS)):
            if tables[name].dtype != dtype:
                raise ValueError(f"{name}: columns")
        for name, dimensions in (("canvases", 1), ("prompt_lengths", 1), ("unsettled", 2)):
            if tables[name].ndim != dimensions or not np.issubdtype(tables[name].dtype, np.integer):
                raise ValueError(name)
        if not np.isfinite(tables["seconds"]).all():
            raise ValueError("seconds")
        if self.gen_length is not None and (not isinstance(self.gen_length, int) or self.gen_length < 0):
            raise ValueError("gen_length")
        for name, columns, end in (("writes", ("kind",), len(KINDS)), ("writes", ("forward", "request", "position"), 1 << 31),
                                   ("passes", ("forward", "request", "begin", "end"), 1 << 31),
                                   ("drafts", ("forward", "request", "position"), 1 << 31),
                                   ("growths", ("forward", "request", "position"), 1 << 31)):
            for column in columns:
                values = tables[name][column].astype(np.int64)
                if len(values) and not 0 <= values.min() <= values.max() < end:
                    raise ValueError(f"{name}: {column}")
        requests = [int(r) for name in ("writes", "passes", "growths", "drafts")
                    for r in np.unique(tables[name]["request"])]
        if max(requests, default=-1) >= len(self.canvases):
            raise ValueError("request")
        for request in range(len(self.canvases)):
            self.canvas(request, len(self.forwards) - 1)
        self._check_lengths()

    def _check_lengths(self) -> None:
        """Raises ValueError where a prompt, a block or a draft reaches beyond its canvas as it was then."""
        sizes = [len(canvas) for canvas in self.canvases]
        if len(self.prompt_lengths) != len(sizes) or not all(0 <= n <= size for n, size in zip(self.prompt_lengths, sizes, strict=True)):
            raise ValueError("prompt_lengths")
        for forward in self.forwards:
            if not all(took.begin < took.end <= sizes[took.request] for took in forward.passes):
                raise ValueError("passes: begin, end")
            if not all(draft.positions.max(initial=-1) < sizes[r] for r, draft in forward.drafts):
                raise ValueError("drafts: position")
            if min(forward.unsettled.values(), default=0) < 0:
                raise ValueError("unsettled")
            took_part = {took.request for took in forward.passes}
            for r, event in forward.events:
                if r not in took_part:
                    raise ValueError("passes: request")
                sizes[r] += event.added if isinstance(event, Growth) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokenizer": None, "_pieces": self.pieces}

    def __repr__(self) -> str:
        return f"Trace({len(self.canvases)} requests, {len(self.forwards)} forward passes)"
