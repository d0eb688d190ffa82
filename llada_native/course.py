"""One request on its way from masks to an answer: what it wants computed next, and what it makes of that."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Cache
from .caching import NEVER, Committed, Held, View
from .canvas import Canvas, transfer_quotas
from .carry import Carry
from .denoiser import NOWHERE, Pass, Prediction, sources
from .editors import Turn
from .result import IntArray
from .trace import EDIT, FILL, REVEAL, REVOKE, Growth, Write
from .windows import Grow

Index = NDArray[np.intp]


class Commit(NamedTuple):
    """What a pass writes into a canvas, surest first; nothing where the pass was doubted."""

    positions: Index
    tokens: IntArray
    confidence: NDArray[np.float64]
    found: Prediction | None = None
    doubted: bool = False


class Course:
    """One request on its way from masks to an answer.

    A pass is asked for with `next_pass`, which may be repeated until `commit` has written what `propose` made of it. `propose` may be
    repeated too, but for selectors with a memory.

    Parameters
    ----------
    canvas : Canvas
    backend : Backend
        Where the caches of its cache policy come from.
    ends : sequence of int, optional
        The end tokens for `early_stop`; default those of the options.
    longest : int, optional
        Positions that prompt and answer may have together, for a canvas that grows.
    carry : Carry, optional
        Keys and values of an earlier request to take over, and where to leave its own.

    Attributes
    ----------
    block, begin, end : int
        The block being filled, or the last one, and where it lies, counted from the start of the prompt.
    finished : bool
    events : list of Write and Growth
        What the last commit did to the canvas.
    """

    def __init__(self, canvas: Canvas, backend: Backend, ends: Sequence[int] | None = None, longest: int | None = None,
                 carry: Carry | None = None) -> None:
        self.canvas, self.backend, self.method = canvas, backend, canvas.options.method
        self.ends = canvas.options.end_ids if ends is None else list(ends)
        self.longest = len(canvas.ids) if longest is None else longest
        self.finished = False
        self.events: list[Write | Growth] = []
        self._memory, self._wants = self.method.selector.memory(), self.method.wants
        self._draws_masks = self.method.draws_masks
        self._by_quota = self._draws_masks or self.method.editor.scheduled
        self._own: list[Cache] = []
        self._held = Held.nothing(len(canvas.ids))
        self._carry = carry
        if carry is not None:
            self._own, kept = carry.take(backend, canvas.ids[:canvas.prompt_length], canvas.options.cache_dtype)
            if kept:  # as if an earlier pass had computed them
                self._held.note(canvas.ids, np.arange(kept), False)
        self._renew = False  # the next pass is a full one
        self._bound: tuple[int, Sequence[Cache]] = 0, ()
        self._rows: Index | None = None  # of the last pass asked for
        self._renews = True
        self._ahead = NOWHERE  # rows of the last pass asked for, where it only fills the caches
        self._measuring = self.method.canvas.grows  # the length of the answer is not settled yet
        self._window: Index | None = None
        self._enter(0)
        self._advance()

    @property
    def index(self) -> int:
        """The present step in the schedule of max_steps steps; beyond a block's steps, its last one."""
        steps = self.canvas.options.steps_per_block
        return self.block * steps + min(self._step, steps - 1)

    @property
    def unsettled(self) -> int:
        """Where the part of the canvas begins that an editor may change yet; the end if there is none."""
        return self.begin if self.method.editor.edits and not self.finished else len(self.canvas.ids)

    def next_pass(self) -> Pass | None:
        """What to compute next; None at the end."""
        if self.finished:
            return None
        c, method = self.canvas, self.method
        reach = method.canvas.reach(c, self.begin, self.end)
        masks = NOWHERE if self._measuring else c.masked(0, reach)
        looked = self._looked(masks)
        start, caches = self._bound
        if len(ahead := self._prefill()):
            self._rows = ahead
            return Pass(ahead, NOWHERE, self._caches(), window=self._window)
        if method.cache.keeps:
            wanted = masks if method.canvas.grows or not len(looked) else np.union1d(masks, looked)
            caches, self._rows = self._caches(), self._cached_rows(wanted, reach)
            if self._rows is not None and method.canvas.grows:
                looked = NOWHERE  # it judges the whole answer, or not at all
        else:
            # A mask at `start` may be predicted by the row before it.
            first = min([start, *sources(masks[:1], self.backend.config.shifted_logits).tolist()]) if start else 0
            self._rows = np.arange(first, len(c.ids)) if first else None
        twins = verified = NOWHERE
        if method.editor.verifies and len(written := c.written(self.begin, self.end)):
            twins, verified = np.arange(self.begin, self.end), written
        return Pass(self._rows, masks, caches, self._wants, looked, self._window, twins, verified)

    def propose(self, found: Prediction) -> Commit:
        """What the selector would write."""
        if self._rows is not None and (here := self._here(found)) and self.method.cache.doubts(found.part(slice(0, here))):
            return Commit(found.positions[:0], found.tokens[:0], found.confidence[:0], found, True)
        chosen = self._chosen(found, max(1, self._quota)) if len(found.positions) else NOWHERE
        return Commit(found.positions[chosen], found.tokens[chosen], found.confidence[chosen], found)

    def commit(self, commit: Commit) -> None:
        """Write it, and go on to the next step. After a doubted pass, a full one follows."""
        self.events = []
        if self.method.cache.keeps:
            self._held.note(self.canvas.ids, self._window if self._rows is None else self._rows, self._renews)
        self._renew = commit.doubted
        if commit.doubted or len(self._ahead):
            return
        if self._measuring:
            self._measure(commit)
            return
        self._write(REVEAL, commit.positions, commit.tokens, commit.confidence)
        if commit.found is not None:
            self._edit(commit.found, len(commit.positions))
            self._widen(commit)
        self._step += 1
        self._advance()

    def bind(self, start: int, caches: Sequence[Cache]) -> None:
        """Compute positions from `start` on, with caches of the caller's, one for each half of guidance."""
        self._bound = start, caches

    def forget(self) -> None:
        """The next pass is a full one; for when nobody knows what its own caches hold, or positions have changed."""
        self._held, self._renew = Held.nothing(len(self.canvas.ids), self._held.passes), True
        self._truncate(0)

    def finish(self) -> None:
        """Ask for no further pass."""
        self.finished = True
        self.close()

    def close(self) -> None:
        """Free its caches, or leave them to later requests."""
        if self._carry is not None and self._own:
            # A pass that failed may have changed the rows that it computed, so only those before are known.
            known = 0 if self._rows is None else int(self._rows[0])
            self._carry.leave(self.backend, self._own, self._held.tokens[:known])
            self._own = []
        for cache in self._own:
            cache.close()

    # ---- the schedule

    @property
    def _quota(self) -> int:
        return self._quotas[self._step] if self._step < len(self._quotas) else 0

    def _turn(self) -> Turn:
        return Turn(self.begin, self.end, self._step, self._steps)

    def _enter(self, block: int) -> None:
        c, o = self.canvas, self.canvas.options
        self.block, self._step = block, 0
        self.begin, self.end = self.method.canvas.bounds(c, block)
        masks = len(c.masked(self.begin, self.end))
        tokens = masks if self.method.editor.scheduled else self.method.canvas.shared(masks)
        shares = transfer_quotas(tokens, o.steps_per_block)
        self._steps, self._quotas = len(shares), self.method.editor.quotas(shares)
        self._edits: Any = self.method.editor.memory()
        self._held.full_of_block = False
        before, self._window = self._window, self.method.canvas.window(c, block, self.end)
        if before is not None and self._window is not None:
            self._slide(before, self._window)

    def _advance(self) -> None:
        """To the next step that has something to do; the last one finishes the request.

        Where masks may be drawn, the quotas alone say when a block is done, for its masks can outlast them.
        """
        if self._measuring:
            return
        while not self.finished and not self._unfinished():
            self._stop_early()
            if self.end >= len(self.canvas.ids):
                self.finish()
            elif not self.finished:
                self._enter(self.block + 1)
        if not self.method.editor.edits:
            self._stop_early()

    def _unfinished(self) -> bool:
        """Whether the present block needs another pass."""
        masks = self.canvas.has_masks(0 if self._draws_masks else self.begin, self.end)
        if self._by_quota:
            return self._quota > 0 and masks
        return masks or self.method.editor.lingers(self.canvas, self._turn(), self._edits)

    def _stop_early(self) -> None:
        c = self.canvas
        if self.method.early_stop and not self.finished and c.answered(self.ends):
            assert c.options.eos_id is not None
            masks = c.fill(c.options.eos_id)
            if len(masks):
                self.events.append(Write(FILL, masks, c.ids[masks], np.full(len(masks), np.nan)))
            self.finish()

    # ---- what a pass writes

    def _here(self, found: Prediction) -> int:
        """How many of the predictions are for the present block, or for what is before it."""
        return int(found.positions.searchsorted(self.end))

    def _chosen(self, found: Prediction, least: int) -> Index:
        """What the selector takes. Where LookAhead looks behind the present block, what it takes of its own accord, and the surest of the
        block if that is less than `least` of it."""
        here = self._here(found)
        if here == len(found.positions):
            return self._checked(found, least)
        chosen = self._checked(found, 0)
        left = np.setdiff1d(np.arange(here), chosen)
        missing = max(0, least - (here - len(left)))
        return np.concatenate([chosen, left[(-found.confidence[left]).argsort(kind="stable")][:missing]])

    def _checked(self, found: Prediction, least: int) -> Index:
        selector, rows = self.method.selector, len(found.positions)
        chosen = indices(selector.choose(found, least, self._memory), lambda: f"selector: expected indices below {rows} from {selector!r}")
        if len(chosen) < min(least, rows):
            raise ValueError(f"selector: expected at least {least} of {rows} positions from {selector!r}, found {len(chosen)}")
        different = set(chosen.tolist())
        if len(different) < len(chosen) or (different and not 0 <= min(different) <= max(different) < rows):
            raise ValueError(f"selector: expected different indices below {rows} from {selector!r}, found {chosen}")
        return chosen

    def _write(self, kind: int, positions: Index, tokens: IntArray, confidence: NDArray[np.float64]) -> None:
        if len(positions):
            self.canvas.commit(positions, tokens, confidence, self.index)
            self.events.append(Write(kind, positions, tokens, confidence))

    def _edit(self, found: Prediction, accepted: int) -> None:
        editor = self.method.editor
        if editor.edits:
            turn = self._turn()
            edits = editor.change(self.canvas, turn._replace(taken=turn.taken + 1), found, accepted, self._edits)
            self._write(EDIT, edits.replaced, edits.tokens, edits.confidence)
            if len(edits.revoked):
                self.canvas.revoke(edits.revoked)
                self.events.append(Write(REVOKE, edits.revoked, self.canvas.ids[edits.revoked], np.full(len(edits.revoked), np.nan)))

    # ---- a canvas that grows

    def _looked(self, masks: Index) -> Index:
        """Positions beside the open ones whose most likely token is wanted."""
        c = self.canvas
        if self.method.canvas.grows:
            return np.setdiff1d(np.arange(c.prompt_length, len(c.ids)), masks)
        return self.method.editor.looks(c, self._turn())

    def _ending(self, found: Prediction) -> float:
        """How sure the model is that the answer ends with the canvas."""
        policy, looked, end_token = self.method.canvas, found.looked, self.canvas.options.eos_id
        assert isinstance(policy, Grow) and end_token is not None
        order = np.concatenate([looked.positions, found.positions]).argsort()
        return policy.ending(np.concatenate([looked.tokens, found.tokens])[order],
                             np.concatenate([looked.probability, found.probability])[order], end_token)

    def _measure(self, commit: Commit) -> None:
        """Add masks until the answer seems to have room."""
        policy, c = self.method.canvas, self.canvas
        assert isinstance(policy, Grow) and commit.found is not None
        room = policy.room(c, self.longest)
        if room and self._ending(commit.found) < policy.enough:
            self._grow(len(c.ids), min(policy.step, room))
        else:
            self._measuring = False
            self._enter(0)
            self._advance()

    def _widen(self, commit: Commit) -> None:
        """Make room in the middle, where a pass over the whole sequence has found too little."""
        policy, found = self.method.canvas, commit.found
        if not isinstance(policy, Grow) or found is None or self._rows is not None:
            return
        room = min(policy.room(self.canvas, self.longest), policy.step - 1)
        if self.method.early_stop and self.canvas.answered(self.ends):
            room = 0
        if room > 0 and self._ending(found) < policy.sure:
            chosen = np.searchsorted(found.positions, commit.positions)
            position = policy.doubtful(found, chosen, self.begin, self.end)
            if position is not None:
                self._grow(position, room)
                self.begin, self.end = policy.bounds(self.canvas, self.block)

    def _grow(self, position: int, count: int) -> None:
        self.canvas.grow(position, count)
        self.events.append(Growth(position, count))
        self.forget()
        self._memory = self.method.selector.memory()  # it knew other positions

    # ---- caches of its policy

    def _caches(self) -> list[Cache]:
        if not self._own:
            dtype = self.canvas.options.cache_dtype
            self._own = [self.backend.create_kv_cache(dtype) for _ in range(2 if self.canvas.rule.guided else 1)]
        return self._own

    def _truncate(self, length: int) -> None:
        for cache in self._own:
            if not cache.closed:
                cache.truncate(min(length, cache.length))

    def _slide(self, before: Index, now: Index) -> None:
        """The slots of a cache are those of its window: what the two have in common at the beginning stays."""
        n = min(len(before), len(now))
        common = int(np.argmin(np.append(before[:n] == now[:n], False)))
        self._truncate(common)
        lost = np.setdiff1d(np.arange(len(self.canvas.ids)), now[:common])
        self._held.tokens[lost] = self._held.age[lost] = NEVER

    def _view(self, wanted: Index, reach: int) -> View:
        return View(self.canvas.ids, self.begin, reach, wanted, self.canvas.prompt_length, self.backend.config.attention_block)

    def _prefill(self) -> Index:
        cache = self.method.cache
        self._ahead = cache.ahead(self._view(NOWHERE, self.end), self._held) if isinstance(cache, Committed) else NOWHERE
        return self._ahead

    def _cached_rows(self, wanted: Index, reach: int) -> Index | None:
        self._renews = True
        if self._renew or self._measuring or not self._held.passes:
            return None
        view = self._view(wanted, reach)
        rows = self.method.cache.rows(view, self._held)
        self._renews = self.method.cache.renews(view, self._held)
        if rows is None:
            return None
        length, policy = len(self.canvas.ids), self.method.cache
        rows = indices(rows, lambda: f"cache: expected positions below {length} from {policy!r}")
        if len(rows) and (rows[0] < 0 or rows[-1] >= length or (np.diff(rows) < 1).any()):
            raise ValueError(f"cache: expected ascending positions below {length} from {policy!r}, found {rows}")
        if self.backend.config.shifted_logits:
            rows = np.union1d(rows, sources(wanted, True))
        if self._window is not None:
            rows = np.intersect1d(np.union1d(rows, np.flatnonzero(self._held.age == NEVER)), self._window)
        if len(rows) == (length if self._window is None else len(self._window)):
            return None
        computed = np.zeros(length, bool)
        computed[rows] = True
        if not computed[wanted].all():
            raise ValueError(f"cache: expected all open positions among the rows of {policy!r}, found no {np.setdiff1d(wanted, rows)}")
        return rows


def indices(found: Any, expected: Callable[[], str]) -> Index:
    """What a part of a method gave, as an array of whole numbers; or else what was expected."""
    array = np.asarray(found)
    if array.ndim == 1 and not len(array):
        return NOWHERE
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{expected()}, a list or array of whole numbers, found {found!r}")
    return array.astype(np.intp, copy=False)
