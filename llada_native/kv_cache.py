"""Keys and values of one request, and the tokens they belong to."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Cache
from .result import IntArray

if TYPE_CHECKING:
    from .model import LLaDAForCausalLM


class KVCache:
    """The keys and values of one request of a model, kept between rounds.

    A task with a cache bound at position 0 computes its whole sequence in every round, which is exact, and leaves its keys and values
    in the cache. Bound at position p, it computes the rows from p on and takes the keys and values before p from the cache. In a
    bidirectional model those depend on the whole sequence, so this is an approximation (the prefix cache of Fast-dLLM,
    arXiv:2505.22618): as good as the cache is fresh.

    Parameters
    ----------
    model : LLaDAForCausalLM

    Attributes
    ----------
    tokens : int32 [length]
        What the keys and values were computed from.
    """

    def __init__(self, model: LLaDAForCausalLM) -> None:
        self._backend = model._backend
        self.conditional: Cache = self._backend.create_kv_cache()
        self._unconditional: Cache | None = None
        self._tokens: IntArray = np.empty(0, np.int32)

    @property
    def tokens(self) -> IntArray:
        return self._tokens[:self.length]

    @property
    def length(self) -> int:
        """Positions held."""
        return self.conditional.length

    @property
    def nbytes(self) -> int:
        """Memory held now; it grows with the longest request."""
        return self.conditional.bytes + (self._unconditional.bytes if self._unconditional else 0)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one position, without guidance; guidance keeps a second cache of unconditional keys and values."""
        return self.conditional.bytes_per_token

    @property
    def handle(self) -> int:
        """What stands for the cache in `LLaDABatchedTask.kv_caches`."""
        return self.conditional.handle

    @property
    def closed(self) -> bool:
        return self.conditional.closed

    def num_matched(self, tokens: Any) -> int:
        """How many leading tokens the cache holds keys and values of."""
        tokens = np.asarray(tokens)
        n = min(len(tokens), self.length)
        different = np.flatnonzero(tokens[:n] != self.tokens[:n])
        return int(different[0]) if len(different) else n

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on.

        Raises
        ------
        ValueError
            The cache holds fewer, was dropped, or a forward pass on another thread is using it.
        """
        self.conditional.truncate(length)
        if self._unconditional is not None:
            self._unconditional.truncate(min(length, self._unconditional.length))

    def drop(self, model: LLaDAForCausalLM | None = None) -> None:
        """Free the memory now. `model` is accepted for the sake of code written for other engines."""
        self.conditional.close()
        if self._unconditional is not None:
            self._unconditional.close()

    def unconditional(self) -> Cache:
        """The second cache that guidance needs."""
        if self._unconditional is None:
            self._unconditional = self._backend.create_kv_cache()
        return self._unconditional

    def remember(self, start: int, tokens: Sequence[int] | IntArray) -> None:
        """A forward pass has stored the keys and values of `tokens` from `start` on."""
        self._tokens = np.concatenate([self._tokens[:start], np.asarray(tokens, np.int32), self._tokens[start + len(tokens):self.length]])

    def __repr__(self) -> str:
        return "KVCache(dropped)" if self.closed else f"KVCache(length={self.length}, nbytes={self.nbytes})"
