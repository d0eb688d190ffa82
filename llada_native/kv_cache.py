"""Keys and values of one request, and the tokens they belong to."""
from __future__ import annotations

from typing import Any

import numpy as np

from . import checks
from .backend import CACHE_DTYPES, Cache
from .prompts import id_rows
from .result import IntArray


class KVCache:
    """The keys and values of one request of a model, kept between rounds.

    A task with a cache bound at position 0 computes its whole sequence in every round, which is exact, and leaves its keys and values
    in the cache. Bound at position p, it computes the rows from p on and takes the keys and values before p from the cache. In a
    bidirectional model those depend on the whole sequence, so this is an approximation (the prefix cache of Fast-dLLM,
    arXiv:2505.22618): as good as the cache is fresh. Where logits are shifted and a mask stands at p, row p - 1 is computed too.

    Parameters
    ----------
    model : LLaDAForCausalLM
    dtype : {"float32", "float16"}
        Of the keys and values. float16 halves their memory and rounds them, so that a cache at position 0 is no longer exact; a key or
        value of 65520 or more becomes infinite, and the rows that see it NaN, which is an error.

    Raises
    ------
    ValueError
        The model is closed, or another dtype. Every attribute and method but `closed` and `drop` raises it once the cache was dropped.
    """

    def __init__(self, model: Any, dtype: str = "float32") -> None:
        if not hasattr(model, "create_kv_cache"):
            raise TypeError(f"model: expected a LLaDAForCausalLM, found {model!r}")
        model._require_open()
        self._backend = model._backend
        checks.one_of("dtype", dtype, CACHE_DTYPES)
        self._conditional = _Part(self._backend.create_kv_cache(dtype))
        self._unconditional: _Part | None = None
        self.busy = False  # in a round, maybe on another thread

    def _open(self) -> _Part:
        if self._conditional.cache.closed:
            raise ValueError("kv_cache: was dropped")
        return self._conditional

    def _require_idle(self) -> None:
        if self.busy:
            raise ValueError("kv_cache: is in a round on another thread")

    @property
    def tokens(self) -> IntArray:
        """What the keys and values were computed from, int32 [length]."""
        return self._open().tokens

    @property
    def length(self) -> int:
        """Positions held."""
        return self._open().cache.length

    @property
    def nbytes(self) -> int:
        """Memory held now; it grows with the longest request."""
        return self._open().cache.bytes + (self._unconditional.cache.bytes if self._unconditional else 0)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one position; twice as much once guidance has made a second, unconditional part."""
        return self._open().cache.bytes_per_token * (2 if self._unconditional else 1)

    @property
    def dtype(self) -> str:
        """"float32" or "float16"."""
        return self._open().cache.dtype

    @property
    def handle(self) -> int:
        """Address of the C++ object, 0 where there is none. `libllada` has caches of its own: ``createKVCache``."""
        return self._open().cache.handle

    @property
    def closed(self) -> bool:
        return self._conditional.cache.closed

    def num_matched(self, tokens: Any) -> int:
        """How many leading tokens the cache holds keys and values of."""
        rows = id_rows(tokens, "tokens")
        if len(rows) != 1:
            raise ValueError(f"tokens: expected one sequence, found {len(rows)}")
        return self._open().matched(rows[0])

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on.

        Raises
        ------
        TypeError, ValueError
            Not a length up to the present one, or a round on another thread is using the cache.
        """
        self._require_idle()
        length = checks.whole_number("length", length, 0, self.length)
        self._open().truncate(length)
        if self._unconditional is not None:
            self._unconditional.truncate(length)

    def drop(self, model: object = None) -> None:
        """Free the memory now. `model` is accepted and not needed. Raises ValueError while a round on another thread is using it."""
        self._require_idle()
        self._conditional.cache.close()
        if self._unconditional is not None:
            self._unconditional.cache.close()

    # ---- what a round needs

    def parts(self, guided: bool) -> list[_Part]:
        """The conditional part, and for guidance the unconditional one."""
        if guided and self._unconditional is None:
            self._unconditional = _Part(self._backend.create_kv_cache(self.dtype))
        return [self._open(), *([self._unconditional] if guided and self._unconditional else [])]

    def __repr__(self) -> str:
        return "KVCache(dropped)" if self.closed else f"KVCache(length={self.length}, nbytes={self.nbytes})"


class _Part:
    """The keys and values of one half of guidance, and their tokens."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._tokens: IntArray = np.empty(0, np.int32)

    @property
    def tokens(self) -> IntArray:
        return self._tokens[:self.cache.length].copy()

    def matched(self, tokens: IntArray) -> int:
        n = min(len(tokens), self.cache.length)
        different = np.flatnonzero(tokens[:n] != self._tokens[:n])
        return int(different[0]) if len(different) else n

    def truncate(self, length: int) -> None:
        self.cache.truncate(min(length, self.cache.length))
        self._tokens = self._tokens[:length]

    def remember(self, tokens: IntArray) -> None:
        """The cache now holds the keys and values of these tokens."""
        self._tokens = tokens.copy()
