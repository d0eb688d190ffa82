"""Pseudo-logits without weights, for trying out the wiring around a model. They mean nothing, and results say so."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig

NOTICE = "[placeholder output, not a model's] "
Bits = NDArray[np.uint64]
SPREAD = 8.0  # pseudo-logits lie in [-SPREAD / 2, SPREAD / 2)


class PlaceholderModel:
    """Deterministic noise in the place of a model. Satisfies `llada_native.backend.Backend`.

    The logit of token t at position p is a hash of t, p and the tokens that p sees, so batches, caches and tiles behave as they do
    with a model.
    """

    name = "placeholder"
    weight_bytes = 0

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.closed = config, False

    def hidden(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], rows: NDArray[np.int32],
               positions: NDArray[np.int32] | None = None, caches: Sequence[PlaceholderCache | None] | None = None) -> Bits:
        if self.closed:
            raise ValueError("the model is closed")
        out, end = [], 0
        for i, n in enumerate(lengths):
            start, cache = 0 if positions is None else int(positions[i]), None if caches is None else caches[i]
            request = tokens[end:end + n]
            end += int(n)
            seen = request if cache is None else cache.replace(start, request)
            where: Bits = np.arange(len(seen)).astype(np.uint64)
            context = np.bitwise_xor.reduce(mix(mix(where) + seen.astype(np.uint64)), keepdims=True).astype(np.uint64)
            out.append(mix(mix(context) + where[start:start + n]))
        return np.concatenate(out)[rows][:, None]

    def head(self, hidden: Bits, begin: int, end: int, out: NDArray[np.float32]) -> None:
        if self.closed:
            raise ValueError("the model is closed")
        tokens: Bits = np.arange(begin, end).astype(np.uint64)
        bits = mix(hidden + tokens) >> np.uint64(40)
        out[...] = bits.astype(np.float32) * np.float32(SPREAD / (1 << 24)) - np.float32(SPREAD / 2)

    def create_kv_cache(self) -> PlaceholderCache:
        return PlaceholderCache()

    def close(self) -> None:
        self.closed = True


class PlaceholderCache:
    """The tokens of one request."""

    bytes_per_token = 4

    def __init__(self) -> None:
        self.tokens, self.closed = np.empty(0, np.int32), False

    handle = 0  # no C++ object

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def bytes(self) -> int:
        return self.tokens.nbytes

    def replace(self, start: int, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        if start > len(self.tokens):
            raise ValueError(f"positions: expected 0 to {len(self.tokens)} (what the cache holds), found {start}")
        self.tokens = np.concatenate([self.tokens[:start], tokens, self.tokens[start + len(tokens):]])
        return self.tokens

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 to {self.length}, found {length}")
        self.tokens = self.tokens[:length]

    def close(self) -> None:
        self.closed = True


def mix(x: Bits) -> Bits:
    """The finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every input bit flips half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
