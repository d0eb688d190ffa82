"""Keys and values that one generation leaves to the next, where that is exact."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .backend import Backend, Cache
from .result import IntArray

if TYPE_CHECKING:
    from .options import GenerationOptions

WHY_NOT = "every row of this model sees the whole canvas, so each token of an answer changes the keys and values of its prompt"


class Carry:
    """Keys and values of finished blocks, from one turn of a conversation to the next.

    Give the same one to `generate` for every turn. In a block-causal model (`config.attention_block`) the keys and values of a whole
    block depend on nothing behind it, so the blocks that a prompt has in common with the sequence before need not be computed again, and
    answers are the same bit for bit. Models whose rows see the whole canvas have nothing to carry.

    Attributes
    ----------
    reused : int
        Positions that the last generation did not have to compute.
    """

    def __init__(self) -> None:
        self.reused = 0
        self._backend: Backend | None = None
        self._caches: list[Cache] = []
        self._tokens: IntArray = np.empty(0, np.int32)  # that the caches were computed from

    @property
    def held(self) -> int:
        """Positions whose keys and values lie here."""
        return len(self._tokens)

    @staticmethod
    def check(backend: Backend, prompts: int, options: GenerationOptions) -> None:
        """Raises ValueError where a generation cannot take one."""
        if not backend.config.attention_block:
            raise ValueError(f"carry: expected a block-causal model; {WHY_NOT}")
        if prompts != 1:
            raise ValueError(f"carry: expected one prompt, found {prompts}")
        if not options.cache.keeps or options.cfg_scale > 0:
            raise ValueError("carry: expected cache='committed' and no guidance, whose second half hides what was given, found "
                             f"cache={options.cache!r} and cfg_scale={options.cfg_scale:g}")

    def take(self, backend: Backend, prompt: IntArray, dtype: str) -> tuple[list[Cache], int]:
        """The caches, cut to the whole blocks that a prompt begins with, and their length. They are not here any more."""
        if self._backend is not backend:
            self.close()
        caches, tokens, block = self._caches, self._tokens, backend.config.attention_block
        self._caches, self._tokens = [], tokens[:0]
        n = min(len(tokens), len(prompt))
        self.reused = int(np.argmin(np.append(tokens[:n] == prompt[:n], False))) // block * block
        if not self.reused or any(cache.dtype != dtype for cache in caches):
            self.reused = 0
            for cache in caches:
                cache.close()
            return [], 0
        for cache in caches:
            cache.truncate(self.reused)
        return caches, self.reused

    def leave(self, backend: Backend, caches: Sequence[Cache], tokens: IntArray) -> None:
        """Keep caches that hold keys and values computed from these tokens."""
        self.close()
        self._backend, self._caches, self._tokens = backend, list(caches), tokens.copy()

    def close(self) -> None:
        """Free the memory."""
        for cache in self._caches:
            cache.close()
        self._caches, self._tokens = [], self._tokens[:0]

    def __repr__(self) -> str:
        return f"Carry({self.held} positions)"
