"""Pseudo-logits without weights, for trying out the wiring around a model. They mean nothing, and results say so."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .backend import lay_out, require_cache_dtype
from .config import ModelConfig

NOTICE = "[placeholder output, not a model's] "
Bits = NDArray[np.uint64]
SPREAD = 8.0  # pseudo-logits lie in [-SPREAD / 2, SPREAD / 2)


class PlaceholderModel:
    """Deterministic noise in the place of a model. Satisfies `llada_native.backend.Backend`.

    The logit of token t at place p is a hash of t, p and the tokens and places that p sees, so batches, caches and tiles behave as they do
    with a model.
    """

    name = "placeholder"
    weight_bytes = 0

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.closed = config, False

    def hidden(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], rows: NDArray[np.int32],
               positions: NDArray[np.int32] | None = None, caches: Sequence[PlaceholderCache | None] | None = None,
               slots: NDArray[np.int32] | None = None, places: NDArray[np.int32] | None = None,
               twins: NDArray[np.int32] | None = None) -> Bits:
        if self.closed:
            raise ValueError("the model is closed")
        out = []
        for request in lay_out(self.config, tokens, lengths, rows, positions, caches, slots, places, twins):
            new, ordinary = np.stack([request.tokens, request.places]), len(request.slots)
            seen = new[:, :ordinary]
            if request.cache is not None:
                seen = request.cache.replace(request.slots, seen)
            keys, shadows = hashes(seen), hashes(new[:, ordinary:])
            context = np.full(len(request.tokens), np.bitwise_xor.reduce(keys), np.uint64)
            context[ordinary:] ^= keys[request.twins] ^ np.bitwise_xor.reduce(shadows)
            out.append(mix(mix(context) + request.places.astype(np.uint64)))
        return np.concatenate(out)[rows][:, None]

    def head(self, hidden: Bits, begin: int, end: int, out: NDArray[np.float32]) -> None:
        if self.closed:
            raise ValueError("the model is closed")
        tokens: Bits = np.arange(begin, end).astype(np.uint64)
        bits = mix(hidden + tokens) >> np.uint64(40)
        out[...] = bits.astype(np.float32) * np.float32(SPREAD / (1 << 24)) - np.float32(SPREAD / 2)

    def create_kv_cache(self, dtype: str = "float32") -> PlaceholderCache:
        return PlaceholderCache(dtype)

    def close(self) -> None:
        self.closed = True


class PlaceholderCache:
    """The tokens of one request and their places, whatever the dtype."""

    bytes_per_token = 8

    def __init__(self, dtype: str = "float32") -> None:
        require_cache_dtype(dtype)
        self.dtype = dtype
        self.seen: NDArray[np.int32] = np.empty((2, 0), np.int32)  # [token and place, length]
        self.closed = False

    handle = 0  # no C++ object

    @property
    def length(self) -> int:
        return int(self.seen.shape[1])

    @property
    def bytes(self) -> int:
        return self.length * self.bytes_per_token

    def replace(self, slots: NDArray[np.int32], new: NDArray[np.int32]) -> NDArray[np.int32]:
        """Store tokens and places [2, slots]; all that the cache then holds."""
        self.seen = np.concatenate([self.seen, new[:, slots >= self.length]], axis=1)
        self.seen[:, slots] = new
        return self.seen

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 to {self.length}, found {length}")
        self.seen = self.seen[:, :length]

    def close(self) -> None:
        self.closed = True


def hashes(keys: NDArray[np.int32]) -> Bits:
    """Of tokens and places [2, keys]."""
    ids, places = keys.astype(np.uint64)
    return mix(mix(places) + ids)


def mix(x: Bits) -> Bits:
    """The finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every input bit flips half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
