"""Which rows a forward pass computes, and which keys and values it takes from an earlier one."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

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
        Of the block being filled, counted from the start of the prompt.
    open : intp [open]
        The masked positions whose predictions are wanted, ascending.
    """

    tokens: IntArray
    begin: int
    end: int
    open: NDArray[np.intp]


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
    full_of_block : bool
        A full pass was made since the present block began.
    """

    tokens: IntArray
    age: IntArray
    passes: int = 0
    passes_since_full: int = 0
    full_of_block: bool = False

    @classmethod
    def nothing(cls, length: int) -> Held:
        return cls(np.full(length, NEVER, np.int32), np.full(length, NEVER, np.int32))

    def note(self, tokens: IntArray, rows: NDArray[np.intp] | None) -> None:
        """A pass over these rows was made; None: over all."""
        where = slice(None) if rows is None else rows
        self.tokens[where], self.age[where] = tokens[where], self.passes
        self.passes += 1
        self.passes_since_full = 0 if rows is None else self.passes_since_full + 1
        self.full_of_block = self.full_of_block or rows is None


class CachePolicy(Protocol):
    """A rule over what a request's caches hold."""

    @property
    def keeps(self) -> bool:
        """Whether there are caches at all."""
        ...

    def rows(self, view: View, held: Held) -> NDArray[np.intp] | None:
        """The positions that the next pass computes, ascending, the open ones among them. None: all. The first pass computes all."""
        ...

    def doubts(self, found: Prediction, full: bool) -> bool:
        """Whether nothing of a pass is to be written, and a full one made instead. Full passes are not asked about."""
        ...


@dataclass(frozen=True)
class NoCache:
    """Every pass computes every row: exact."""

    keeps: ClassVar[bool] = False

    def rows(self, view: View, held: Held) -> None:
        return None

    def doubts(self, found: Prediction, full: bool) -> bool:
        return False
