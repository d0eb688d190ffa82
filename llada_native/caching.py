"""Which rows a forward pass computes, and which keys and values it takes from an earlier one."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from . import checks
from .result import IntArray

if TYPE_CHECKING:
    from .denoiser import Prediction

NEVER = -1


@dataclass(frozen=True)
class View:
    """A request before a pass.

    Attributes
    ----------
    tokens : int32 [length]
        Prompt and answer as they stand.
    begin, end : int
        Of the blocks being filled, counted from the start of the prompt.
    open : intp [open]
        The positions whose predictions are wanted, ascending.
    prompt : int
        Length of the prompt.
    attention_block : int
        Rows see their own block of so many positions and those before it; 0: all rows see all.
    """

    tokens: IntArray
    begin: int
    end: int
    open: NDArray[np.intp]
    prompt: int
    attention_block: int = 0


@dataclass
class Held:
    """What the caches of a request hold; one for both halves of guidance, for they are computed together.

    Attributes
    ----------
    tokens : int32 [length]
        The token that each position's keys and values were computed from, -1 for none.
    age : int32 [length]
        The pass that computed them, -1 for none.
    passes : int
        So far.
    passes_since_full : int
        A full pass is one that its policy says renews everything.
    full_of_block : bool
        A full pass was made since the present block began.
    """

    tokens: IntArray
    age: IntArray
    passes: int = 0
    passes_since_full: int = 0
    full_of_block: bool = False

    @classmethod
    def nothing(cls, length: int, passes: int = 0) -> Held:
        return cls(np.full(length, NEVER, np.int32), np.full(length, NEVER, np.int32), passes)

    def note(self, tokens: IntArray, rows: NDArray[np.intp] | None, full: bool) -> None:
        """A pass over these rows was made, None for all."""
        where = slice(None) if rows is None else rows
        self.tokens[where], self.age[where] = tokens[where], self.passes
        self.passes += 1
        self.passes_since_full = 0 if full else self.passes_since_full + 1
        self.full_of_block = self.full_of_block or full


class CachePolicy(Protocol):
    """A rule over what a request's caches hold."""

    @property
    def keeps(self) -> bool:
        """Whether there are caches at all."""
        ...

    @property
    def wants(self) -> frozenset[str]:
        """The statistics of a `Prediction` that `doubts` reads."""
        ...

    def rows(self, view: View, held: Held) -> NDArray[np.intp] | None:
        """The positions that the next pass computes, ascending, the open ones among them. None: all. The first pass computes all.

        Where logits are shifted, the positions before the open ones are added.
        """
        ...

    def renews(self, view: View, held: Held) -> bool:
        """Whether that pass counts as a full one."""
        ...

    def doubts(self, found: Prediction) -> bool:
        """Whether nothing of a pass that was not over all rows is to be written, and such a one made instead."""
        ...


@dataclass(frozen=True)
class NoCache:
    """Every pass computes every row: exact.

    Rows of a pass: all.
    """

    keeps: ClassVar[bool] = False
    wants: ClassVar[frozenset[str]] = frozenset()

    def rows(self, view: View, held: Held) -> None:
        return None

    def renews(self, view: View, held: Held) -> bool:
        return True

    def doubts(self, found: Prediction) -> bool:
        return False


@dataclass(frozen=True)
class _Keeping:
    """What all policies share that keep keys and values: when a pass is a full one, and when it is doubted.

    Parameters
    ----------
    refresh_every : int
        Every n-th pass is full; 0: only the first of each block. 1, without `prompt_every`, is `NoCache`, bit for bit.
    warmup : int
        So many passes at the start are full.
    doubt : float, optional
        A pass over stale keys in which no probability reaches it writes nothing, and a full pass follows: the tokens that would be
        forced, because one has to be written, are the ones that stale keys get wrong. None trusts every pass.
    prompt_every : int
        Above 0, full passes leave out the prompt while its keys are less than so many passes old: the whole answer counts as all, as in
        dLLM-Cache (arXiv:2506.06295; 50 to 100).
    """

    keeps: ClassVar[bool] = True
    refresh_every: int = 0
    warmup: int = 0
    doubt: float | None = None
    prompt_every: int = 0

    def __post_init__(self) -> None:
        checks.whole_number("refresh_every", self.refresh_every, 0)
        checks.whole_number("warmup", self.warmup, 0)
        checks.whole_number("prompt_every", self.prompt_every, 0)
        if self.doubt is not None:
            checks.within("doubt", self.doubt, 0, 1)

    @property
    def wants(self) -> frozenset[str]:
        return frozenset() if self.doubt is None else frozenset({"probability"})

    def renews(self, view: View, held: Held) -> bool:
        due = self.refresh_every > 0 and held.passes_since_full >= self.refresh_every - 1
        return due or not held.full_of_block or held.passes < self.warmup

    def rows(self, view: View, held: Held) -> NDArray[np.intp] | None:
        if not self.renews(view, held):
            return np.union1d(self._stale(view, held), view.open)
        computed = int(held.age[0])
        if computed == NEVER or held.passes - computed >= self.prompt_every:
            return None
        return np.arange(view.prompt, len(view.tokens))

    def _stale(self, view: View, held: Held) -> NDArray[np.intp]:
        """What is computed anew beside the open positions."""
        raise NotImplementedError

    def doubts(self, found: Prediction) -> bool:
        return self.doubt is not None and not bool((found.probability >= self.doubt).any())


@dataclass(frozen=True)
class Prefix(_Keeping):
    """Keys and values of everything before the block are kept (Fast-dLLM, arXiv:2505.22618, `generate_with_prefix_cache`).

    Rows of a pass: all in the first of a block, which reveals tokens like every other; then the block and all that follows it.
    """

    def _stale(self, view: View, held: Held) -> NDArray[np.intp]:
        return np.arange(view.begin, len(view.tokens))


@dataclass(frozen=True)
class Dual(_Keeping):
    """Keys and values of everything outside the block are kept (Fast-dLLM, arXiv:2505.22618, `generate_with_dual_cache`).

    Rows of a pass: all in the first of a block, then those of the block and of its vicinity. Fast-dLLM makes the first pass a step of
    its own and another one for the block; here it is a step, and a block that it finishes costs no other.

    Parameters
    ----------
    vicinity : tuple of int
        Positions before and behind the block that are computed too (dInfer, arXiv:2510.08666: 16 and 16).
    """

    vicinity: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.vicinity, tuple | list) or len(self.vicinity) != 2:
            raise TypeError(f"vicinity: expected two numbers of positions, like (16, 16), found {self.vicinity!r}")
        object.__setattr__(self, "vicinity", tuple(self.vicinity))
        for side in self.vicinity:
            checks.whole_number("vicinity", side, 0)

    def _stale(self, view: View, held: Held) -> NDArray[np.intp]:
        left, right = self.vicinity
        return np.arange(max(0, view.begin - left), min(len(view.tokens), view.end + right))


@dataclass(frozen=True)
class Delayed(_Keeping):
    """Keys and values of revealed tokens are kept, from the pass after they were revealed (dKV-Cache-Decode, arXiv:2505.15781).

    Rows of a pass: all in the first of a block, then the masks of the block and the tokens revealed by the pass before. Their keys
    were those of masks; computed once more, they are those of the tokens.
    """

    def _stale(self, view: View, held: Held) -> NDArray[np.intp]:
        return np.flatnonzero(view.tokens != held.tokens)


@dataclass(frozen=True)
class Committed:
    """Keys and values of finished blocks are kept, which in a block-causal model is exact: they never change.

    Rows of a pass: the block that is being filled; with its first pass those of the block before, whose keys were still those of its
    masks. No pass is spent on keys alone, but for a long prompt: `prefill` of its rows at a time, so that only the cache grows with it.

    Parameters
    ----------
    prefill : int
        Rows of a pass over the prompt, in whole blocks, at least one.

    References
    ----------
    LLaDA2.0, arXiv:2512.15745. The merged pass: inclusionAI/dInfer, cross-block update.
    """

    keeps: ClassVar[bool] = True
    wants: ClassVar[frozenset[str]] = frozenset()
    prefill: int = 512

    def __post_init__(self) -> None:
        checks.whole_number("prefill", self.prefill)

    def rows(self, view: View, held: Held) -> NDArray[np.intp]:
        return np.arange(self._kept(view, held), view.end)

    def ahead(self, view: View, held: Held) -> NDArray[np.intp]:
        """Rows that are computed by a pass of their own before any prediction is made: the next part of a long prompt."""
        kept, block = self._kept(view, held), view.attention_block
        most = max(1, self.prefill // block) * block
        begin = view.begin // block * block
        return np.arange(kept, kept + most if begin - kept > most else kept)

    @staticmethod
    def _kept(view: View, held: Held) -> int:
        """Positions whose keys and values are final: whole blocks before the present one."""
        stale = np.flatnonzero(held.tokens[:view.begin] != view.tokens[:view.begin])
        first = int(stale[0]) if len(stale) else view.begin
        return first // view.attention_block * view.attention_block

    def renews(self, view: View, held: Held) -> bool:
        return False

    def doubts(self, found: Prediction) -> bool:
        return False


NAMES: dict[str, type[Any]] = {"none": NoCache, "prefix": Prefix, "dual": Dual, "delayed": Delayed, "committed": Committed}
