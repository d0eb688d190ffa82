"""The same forward pass in NumPy: float64, slow and obviously right."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from .backend import IntegerRows, Placed, TensorSource, lay_out, require_cache_dtype, tensor_specs
from .config import ModelConfig

Array = NDArray[np.float64]
MLP = ("gate", "up", "down")


class ReferenceModel:
    """A LLaDA in float64. Satisfies `llada_native.backend.Backend`.

    Weights are kept as they come and widened where they are used, so the memory is that of the checkpoint.
    """

    name = "reference"

    def __init__(self, source: TensorSource) -> None:
        self.config = source.config
        parts: dict[tuple[str, int, int], list[NDArray[Any]]] = {}
        for spec, _, rows in source.slices():
            floats = rows.floats() if isinstance(rows, IntegerRows) else rows
            parts.setdefault((spec.role, spec.layer, spec.expert), []).append(floats)
        self.weights = {key: np.concatenate(p) if len(p) > 1 else p[0] for key, p in parts.items()}
        if self.config.weight_tying:
            self.weights["head", -1, -1] = self.weights["embedding", -1, -1]

    def weight(self, role: str, layer: int = -1, expert: int = -1) -> Array:
        return self.weights[role, layer, expert].astype(np.float64)

    @property
    def closed(self) -> bool:
        return not self.weights

    def _open(self) -> None:
        if self.closed:
            raise ValueError("the model is closed")

    def hidden(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], rows: NDArray[np.int32],
               positions: NDArray[np.int32] | None = None, caches: Sequence[ReferenceCache | None] | None = None,
               slots: NDArray[np.int32] | None = None, places: NDArray[np.int32] | None = None,
               twins: NDArray[np.int32] | None = None) -> Array:
        self._open()
        requests = lay_out(self.config, tokens, lengths, rows, positions, caches, slots, places, twins)
        try:
            out = [self._request(request) for request in requests]
        except BaseException:  # some layers have new keys, others not
            for request in requests:
                if request.cache is not None:
                    request.cache.cut(int(request.slots[0]))
            raise
        return np.concatenate(out)[rows]

    def create_kv_cache(self, dtype: str = "float32") -> ReferenceCache:
        return ReferenceCache(self.config, dtype)

    def head(self, hidden: Array, begin: int, end: int, out: NDArray[np.float32]) -> None:
        self._open()
        out[...] = hidden @ self.weights["head", -1, -1][begin:end].astype(np.float64).T

    def _request(self, request: Placed) -> Array:
        c, tokens, cache = self.config, request.tokens, request.cache
        cos, sin = rotary_tables(request.places, c.rotary_dim, c.rope_theta)
        x = self.weights["embedding", -1, -1][tokens].astype(np.float64)
        for i in range(c.n_layers):
            h = rms_norm(x, self.weight("attn_norm", i), c.rms_norm_eps)
            q, k, v = (split_heads(self._projected(h, n, i), c.head_dim) for n in "qkv")
            if c.qk_norm:
                q, k = rms_norm(q, self.weight("q_norm", i), c.rms_norm_eps), rms_norm(k, self.weight("k_norm", i), c.rms_norm_eps)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if cache is not None:
                k, v = cache.replace(i, request.slots, k, v)
            k, v = (np.repeat(t, c.n_heads // c.n_kv_heads, axis=0) for t in (k, v))
            seen, ordinary = k.shape[1] - len(request.twins), len(request.slots)
            parts = [attend(q[:, rows], k[:, :end], v[:, :end]) for rows, end in spans(request.slots, seen, c.attention_block)]
            parts += [attend(q[:, [row]], np.delete(k, twin, 1), np.delete(v, twin, 1)) for row, twin in enumerate(request.twins, ordinary)]
            attended = np.concatenate(parts, axis=1).swapaxes(0, 1).reshape(len(tokens), -1)
            x = x + attended @ self.weight("o_proj", i).T
            h = rms_norm(x, self.weight("mlp_norm", i), c.rms_norm_eps)
            if not c.has_experts(i):
                x = x + gated_mlp(h, *(self.weight(f"{n}_proj", i) for n in MLP))
                continue
            x = x + self._experts(h, i)
            if c.shared_expert_hidden_size:
                x = x + gated_mlp(h, *(self.weight(f"shared_{n}_proj", i) for n in MLP))
        return rms_norm(x, self.weight("final_norm"), c.rms_norm_eps)

    def _projected(self, h: Array, part: str, layer: int) -> Array:
        out: Array = h @ self.weight(f"{part}_proj", layer).T
        return out + self.weight(f"{part}_bias", layer) if self.config.qkv_bias else out

    def _experts(self, h: Array, layer: int) -> Array:
        """Each row's experts, weighted."""
        c, logits = self.config, h @ self.weight("router", layer).T
        if c.routing == "softmax":
            chosen, shares = most_probable(logits, c.experts_per_token)
        else:
            chosen, shares = best_of_groups(logits, self.weight("router_bias", layer), c)
        out = np.zeros_like(h)
        for expert in np.unique(chosen).tolist():
            rows, places = np.nonzero(chosen == expert)
            weights = (self.weight(f"expert_{n}_proj", layer, expert) for n in MLP)
            out[rows] += shares[rows, places, None] * gated_mlp(h[rows], *weights)
        return out

    def close(self) -> None:
        self.weights = {}

    @property
    def weight_bytes(self) -> int:
        self._open()
        return sum(self.weights[s.role, s.layer, s.expert].nbytes for s in tensor_specs(self.config))


class ReferenceCache:
    """Keys and values of one request: a list of [kv_heads, length, head_dim] arrays, one a layer, float64 or float16."""

    def __init__(self, config: ModelConfig, dtype: str = "float32") -> None:
        require_cache_dtype(dtype)
        empty: NDArray[Any] = np.zeros((config.n_kv_heads, 0, config.head_dim), np.float16 if dtype == "float16" else np.float64)
        self.keys, self.values = [empty] * config.n_layers, [empty] * config.n_layers
        self.bytes_per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * empty.itemsize
        self.closed, self.dtype = False, dtype

    handle = 0  # no C++ object

    @property
    def length(self) -> int:
        return min((int(k.shape[1]) for k in self.keys), default=0)

    @property
    def bytes(self) -> int:
        return self.length * self.bytes_per_token

    def replace(self, layer: int, slots: NDArray[np.int32], k: Array, v: Array) -> tuple[Array, Array]:
        """Store keys and values in their slots; all that the layer then holds, and behind it the shadows, which have no slots."""
        seen = []
        for held, new in ((self.keys, k), (self.values, v)):
            rounded = new.astype(held[layer].dtype)
            stored, shadows = rounded[:, :len(slots)], rounded[:, len(slots):]
            behind = stored[:, slots >= held[layer].shape[1]]
            held[layer] = np.concatenate([held[layer], behind], axis=1)
            held[layer][:, slots] = stored
            seen.append(np.concatenate([held[layer], shadows], axis=1).astype(np.float64))
        return seen[0], seen[1]

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"length: expected 0 to {self.length}, found {length}")
        self.cut(length)

    def cut(self, length: int) -> None:
        self.keys, self.values = [k[:, :length] for k in self.keys], [v[:, :length] for v in self.values]

    def close(self) -> None:
        self.keys, self.values, self.closed = [], [], True


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    scale: Array = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return x / scale * weight


def gated_mlp(h: Array, gate: Array, up: Array, down: Array) -> Array:
    g = h @ gate.T
    out: Array = (g * expit(g) * (h @ up.T)) @ down.T
    return out


def most_probable(logits: Array, top: int) -> tuple[NDArray[np.intp], Array]:
    """Ids of the most probable experts [rows, top], of equal ones the lowest, and their probabilities as they are."""
    probabilities: Array = softmax(logits, axis=-1)
    chosen = largest(probabilities, top)
    return chosen, np.take_along_axis(probabilities, chosen, -1)


def best_of_groups(logits: Array, bias: Array, c: ModelConfig) -> tuple[NDArray[np.intp], Array]:
    """Ids of the experts with the largest sigmoids plus bias [rows, top], of the best groups only, and their weights without the bias."""
    sigmoids: Array = expit(logits)
    scores = (sigmoids + bias).reshape(len(logits), c.expert_groups, -1)  # [rows, groups, experts of a group]
    if c.chosen_groups < c.expert_groups:
        groups = largest(np.sort(scores, axis=-1)[..., -2:].sum(-1), c.chosen_groups)
        kept = np.zeros(scores.shape[:2], bool)
        np.put_along_axis(kept, groups, True, -1)
        scores = np.where(kept[..., None], scores, -np.inf)
    chosen = largest(scores.reshape(logits.shape), c.experts_per_token)
    weights = np.take_along_axis(sigmoids, chosen, -1)
    if c.experts_per_token > 1:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return chosen, weights * c.expert_scale


def largest(x: Array, n: int) -> NDArray[np.intp]:
    """Indices of the n largest of each row, the largest first; of equal ones the lowest."""
    return np.argsort(-x, axis=-1, kind="stable")[:, :n]


def spans(slots: NDArray[np.int32], keys: int, block: int) -> list[tuple[slice, int]]:
    """Rows of a request that see the same keys, which are those before an end: all rows, or those of one block."""
    if not block:
        return [(slice(0, len(slots)), keys)]
    begins = np.flatnonzero(np.diff(slots // block, prepend=-1))
    return [(slice(begin, end), min(keys, (int(slots[begin]) // block + 1) * block))
            for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(slots)], strict=True)]


def attend(q: Array, k: Array, v: Array) -> Array:
    """[heads, rows, head_dim] for q of that shape, k and v [heads, keys, head_dim]"""
    attended: Array = softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2]), axis=-1) @ v
    return attended


def split_heads(x: Array, head_dim: int) -> Array:
    """[rows, heads * head_dim] -> [heads, rows, head_dim]"""
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def rotary_tables(places: NDArray[np.int32], rotary_dim: int, theta: float) -> tuple[Array, Array]:
    """cos and sin [places, rotary_dim / 2]. Frequencies and angles are float32, as the model was trained."""
    frequency = (theta ** (-np.arange(0, rotary_dim, 2) / rotary_dim)).astype(np.float32)
    angle = np.outer(places.astype(np.float32), frequency).astype(np.float64)
    return np.cos(angle), np.sin(angle)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate-half: of the first rotary_dim dimensions, i is paired with i + rotary_dim / 2. The rest passes through."""
    half = cos.shape[-1]
    low, high, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)
