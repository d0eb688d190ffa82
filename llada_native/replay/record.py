"""What a page is given to replay a run: the record of a trace, in lists that JSON writes short.

Positions become *cells*: those of the last canvas, from the end of the prompt on, so that a canvas which has grown keeps its places.
Passes are those that a request took part in, and step t is what stands after t of them.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..trace import Draft, Growth, Trace, Write

# Predictions that were not written are most of a page, so they are digits in strings: a confidence is one, precise enough for a curve, and
# a pass or a token so many as the largest takes.
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
NO_GUESS = " "
PARTS_OF_ONE = 1000  # confidence of a written token


def run(trace: Trace, name: str, requests: Iterable[int], drafts: bool) -> dict[str, Any]:
    """One run.

    Parameters
    ----------
    requests : iterable of int
        Which.
    drafts : bool
        Whether to give what was predicted and not written, if the trace has it.
    """
    vocabulary, low, high = _Vocabulary(), *_range(trace, drafts)
    told = [_Request(trace, r, vocabulary, low, high, drafts).told() for r in requests]
    pieces = trace.pieces
    return {
        "name": name,
        "method": trace.method,
        "passes": len(trace),
        "rows": int(trace.passes["rows"].sum()),
        "answered": sum(trace.answer_lengths),
        "seconds": [round(float(s), 4) for s in trace.seconds],
        "range": [low, high],
        "tokens": [pieces.texts.get(t, f"#{t}") for t in vocabulary.ids],
        "special": [i for i, t in enumerate(vocabulary.ids) if t in pieces.special],
        "ends": [i for i, t in enumerate(vocabulary.ids) if t in trace.end_ids],
        "mask": vocabulary.number(trace.mask_id),
        "requests": told,
    }


class _Vocabulary:
    """The tokens of a page, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def number(self, token: int) -> int:
        return self._numbers.setdefault(int(token), len(self._numbers))

    @property
    def ids(self) -> list[int]:
        return list(self._numbers)


class _Request:
    """One request of a trace."""

    def __init__(self, trace: Trace, request: int, vocabulary: _Vocabulary, low: float, high: float, drafts: bool) -> None:
        self.trace, self.request, self.number, self.low, self.high = trace, request, vocabulary.number, low, high
        self.number(trace.mask_id)
        self.forwards = [f for f, forward in enumerate(trace.forwards) if any(took.request == request for took in forward.passes)]
        self.drafts = drafts and any(r == request for forward in trace.forwards for r, _ in forward.drafts)
        written = (p for _, e in self._events() if isinstance(e, Write) for p in e.positions.tolist())
        self.first: int = min([trace.prompt_lengths[request], *written])  # a prompt may hold masks, which are filled too
        self.places, self.born = self._places()

    def told(self) -> dict[str, Any]:
        start, last = self.trace.canvas(self.request, -1), self.trace.canvas(self.request, len(self.trace) - 1)
        given = (np.flatnonzero(start[self.first:] != self.trace.mask_id) + self.first).tolist()
        took = [next(t for t in self.trace.forwards[f].passes if t.request == self.request) for f in self.forwards]
        prompt = start[:self.first].tolist()
        pieces = self.trace.pieces
        return {
            "prompt": [self.number(t) for t in prompt],
            "promptJoined": pieces.groups(prompt),
            "cells": len(last) - self.first,
            "born": [[cell, step] for cell, step in enumerate(self.born[self.first:].tolist()) if step],
            "given": [x for p in given for x in (self._cells(-1, p), self.number(start[p]))],
            "forwards": self.forwards,
            "rows": [t.rows for t in took],
            "full": "".join("01"[t.full] for t in took),
            "blocks": [x for step, t in enumerate(took) for x in (self._cells(step, t.begin), self._cells(step, t.end - 1) + 1)],
            "unsettled": self._unsettled(),
            "writes": [x for step, e in self._events() if isinstance(e, Write) for x in self._write(step, e)],
            **self._guessed(),
            "joined": pieces.groups(last[self.first:].tolist()),
        }

    def _events(self) -> Iterable[tuple[int, Write | Growth]]:
        return ((step, event) for step, f in enumerate(self.forwards) for r, event in self.trace.forwards[f].events if r == self.request)

    def _places(self) -> tuple[list[NDArray[np.intp]], NDArray[np.intp]]:
        """For each pass, where its positions are in the last canvas; and from which step on a position of that is there."""
        names, born = np.arange(len(self.trace.canvases[self.request])), np.zeros(len(self.trace.canvases[self.request]), np.intp)
        at: list[NDArray[np.intp]] = []
        for step in range(len(self.forwards)):
            at.append(names)
            for event in (e for s, e in self._growing if s == step):
                added = np.arange(len(born), len(born) + event.added)
                names, born = np.insert(names, event.position, added), np.append(born, np.full(event.added, step + 1))
        last = names.argsort()
        return [last[before] for before in (at or [names])], born[names]

    @property
    def _growing(self) -> list[tuple[int, Growth]]:
        return [(step, e) for step, e in self._events() if isinstance(e, Growth)]

    def _cells(self, step: int, position: int) -> int:
        """The cell of a position in the canvas before a pass."""
        return int(self.places[max(step, 0)][position]) - self.first

    def _unsettled(self) -> list[int] | None:
        """After each pass the first cell that an editor may change yet; None without an editor."""
        found = [self.trace.forwards[f].unsettled.get(self.request) for f in self.forwards]
        if all(begin is None for begin in found):
            return None
        cells = len(self.places[-1]) - self.first
        return [cells if begin is None or begin >= len(self.places[step]) else self._cells(step, begin) for step, begin in enumerate(found)]

    def _write(self, step: int, event: Write) -> list[int]:
        """Step, cell, kind, token, confidence of each."""
        return [x for position, token, confidence in zip(event.positions, event.tokens, event.confidence, strict=True)
                for x in (step, self._cells(step, position), event.kind, self.number(token),
                          -1 if np.isnan(confidence) else round(PARTS_OF_ONE * self._share(confidence)))]

    def _guessed(self) -> dict[str, Any]:
        """For each cell the first pass that looked at it, the confidence in this and every later pass, and where the guess changed to what.

        Empty where none looked.
        """
        found: dict[int, list[tuple[int, int, float]]] = {}
        for step, draft in self._drafts():
            for position, token, confidence in zip(draft.positions.tolist(), draft.tokens.tolist(), draft.confidence.tolist(), strict=True):
                found.setdefault(self._cells(step, position), []).append((step, self.number(token), confidence))
        width = _width(max((number for looks in found.values() for step, token, _ in looks for number in (step, token)), default=0))
        cells = len(self.born) - self.first
        return {"width": width, "guesses": [self._told(found.get(cell, []), width) for cell in range(cells)] if self.drafts else None}

    def _drafts(self) -> Iterable[tuple[int, Draft]]:
        return ((step, d) for step, f in enumerate(self.forwards) for r, d in self.trace.forwards[f].drafts if r == self.request)

    def _told(self, looks: Sequence[tuple[int, int, float]], width: int) -> list[Any]:
        if not looks:
            return []
        first, before = looks[0][0], None
        levels = [NO_GUESS] * (looks[-1][0] - first + 1)
        changes = []
        for step, token, confidence in looks:
            levels[step - first] = DIGITS[round(self._share(confidence) * (len(DIGITS) - 1))]
            if token != before:
                changes += [_digits(step, width), _digits(token, width)]
            before = token
        return [first, "".join(levels), "".join(changes)]

    def _share(self, confidence: float) -> float:
        """Between the lowest and the highest of the run."""
        return min(1.0, max(0.0, (float(confidence) - self.low) / (self.high - self.low)))


def _width(largest: int) -> int:
    """Digits that a number takes."""
    return 1 if largest < len(DIGITS) else 1 + _width(largest // len(DIGITS))


def _digits(number: int, width: int) -> str:
    return "".join(DIGITS[number // len(DIGITS) ** place % len(DIGITS)] for place in reversed(range(width)))


def _range(trace: Trace, drafts: bool) -> tuple[float, float]:
    """Confidences are probabilities, but for orders like the negative entropy: of those the lowest, rounded down."""
    found = [trace.writes["confidence"], *([trace.drafts["confidence"]] if drafts else [])]  # of an end token that waits it is -inf
    lowest = min(np.min(known[np.isfinite(known)], initial=0.0) for known in found)
    return float(np.floor(lowest)), 1.0 if lowest >= 0 else 0.0
