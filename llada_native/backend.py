"""What the decoding loop asks of a forward pass, and the table of a model's tensors."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig

CACHE_DTYPES = ("float32", "float16")
MAX_POSITIONS = 1 << 24  # float32 holds every whole number up to here, and RoPE takes angles of them


class Cache(Protocol):
    """Keys and values of one request, kept between forward passes of the backend that made it."""

    @property
    def dtype(self) -> str:
        """What keys and values are rounded to, if the backend has less precision than it computes with."""
        ...

    @property
    def closed(self) -> bool: ...

    @property
    def length(self) -> int:
        """Positions held."""
        ...

    @property
    def bytes(self) -> int: ...

    @property
    def bytes_per_token(self) -> int: ...

    @property
    def handle(self) -> int:
        """The address of the C++ object, 0 where there is none."""
        ...

    def truncate(self, length: int) -> None:
        """Forget positions from `length` on."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """A forward pass over ragged requests. Implemented by the C++ engine, the NumPy reference and the placeholder."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def closed(self) -> bool: ...

    def hidden(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], rows: NDArray[np.int32],
               positions: NDArray[np.int32] | None = None, caches: Sequence[Any] | None = None,
               slots: NDArray[np.int32] | None = None, places: NDArray[np.int32] | None = None,
               twins: NDArray[np.int32] | None = None) -> NDArray[Any]:
        """Final-norm output [len(rows), width] of the selected rows of requests laid end to end.

        A request with a cache stands at its position: its keys and values replace those positions or extend the cache, and its rows
        see all that the cache then holds. Instead of positions, `slots` say of every token where its keys and values lie in its
        request's cache: ascending, and from the cache's length on without a gap. `places` are the tokens' positions for RoPE, by default
        their slots. A failed call leaves what lies before the first slot of each request.

        With `attention_block` B in the configuration, a row in slot s sees the slots below (s // B + 1) * B of its request and no others,
        whatever its cache holds. Its place is then its slot, and there are no `twins`.

        With `twins`, the last tokens of a request may be shadows (of WINO, arXiv:2507.18578): each has a slot there, that of its twin, and
        -1 is for the other tokens, of which a request has at least one. A shadow sees all that its request sees except the twin's slot,
        and all shadows of its request, itself included. Other tokens do not see shadows, and no cache keeps them. In `slots` they have -1,
        and without `places` they stand at the twin's slot.
        """
        ...

    def head(self, hidden: NDArray[Any], begin: int, end: int, out: NDArray[np.float32]) -> None:
        """out[rows, end - begin] = logits of the tokens begin to end."""
        ...

    def create_kv_cache(self, dtype: str = "float32") -> Cache:
        """An empty cache for one request. With "float16" keys and values are rounded to float16 before a row sees them."""
        ...

    def close(self) -> None: ...


def require_cache_dtype(dtype: str) -> None:
    if dtype not in CACHE_DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(map(repr, CACHE_DTYPES))}, found {dtype!r}")


@dataclass(frozen=True)
class Placed:
    """One request of a batch and where its tokens stand."""

    tokens: NDArray[np.int32]
    slots: NDArray[np.int32]  # of the tokens before the shadows
    places: NDArray[np.int32]
    twins: NDArray[np.int32]  # slots of the shadows' twins
    cache: Any


def lay_out(config: ModelConfig, tokens: NDArray[np.int32], lengths: NDArray[np.int32], rows: NDArray[np.int32],
            positions: NDArray[np.int32] | None, caches: Sequence[Any] | None, slots: NDArray[np.int32] | None,
            places: NDArray[np.int32] | None, twins: NDArray[np.int32] | None = None) -> list[Placed]:
    """The requests that `Backend.hidden` was asked for, with the checks of the C++ engine."""
    n, requests = len(tokens), len(lengths)
    for r, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"lengths[{r}]: expected at least 1, found {length}")
    if sum(lengths) != n:
        raise ValueError(f"lengths: expected a sum of {n} tokens, found {sum(lengths)}")
    for name, found, wanted, of in (("positions", positions, requests, "requests"), ("caches", caches or None, requests, "requests"),
                                    ("slots", slots, n, "tokens"), ("places", places, n, "tokens"), ("twins", twins, n, "tokens")):
        if found is not None and len(found) != wanted:
            raise ValueError(f"{name}: expected one for each of {wanted} {of}, found {len(found)}")
    if slots is not None and positions is not None:
        raise ValueError("positions: expected none beside slots, found some")
    placed: list[Placed] = []
    begin = 0
    for r, length in enumerate(lengths):
        start, cache = 0 if positions is None else int(positions[r]), caches[r] if caches else None
        held = 0 if cache is None else cache.length
        if not 0 <= start <= held:
            raise ValueError(f"positions[{r}]: expected 0 to {held} (what its cache holds), found {start}")
        for user, other in enumerate(placed):
            if cache is not None and other.cache is cache:
                raise ValueError(f"kv_caches[{r}]: is also that of request {user}")
        own = slice(begin, begin + int(length))
        begin = own.stop
        kinds = np.full(length, -1, np.int32) if twins is None else twins[own]
        ordinary = next((i for i, twin in enumerate(kinds.tolist()) if twin != -1), len(kinds))
        if ordinary == 0:
            raise ValueError(f"twins[{own.start}]: expected -1 (a request does not begin with a shadow), found {kinds[0]}")
        shadow_begin, shadows = own.start + ordinary, kinds[ordinary:]
        mine = np.arange(start, start + ordinary, dtype=np.int32) if slots is None else slots[own.start:shadow_begin]
        where = np.concatenate([mine, shadows]) if places is None else places[own]
        following = start
        for i, slot, place in zip(range(own.start, shadow_begin), mine.tolist(), where[:ordinary].tolist(), strict=True):
            most = max(held, following)
            if not following <= slot <= most:
                raise ValueError(f"slots[{i}]: expected {following} to {most} (ascending, and without a gap behind what its cache holds), "
                                 f"found {slot}")
            require_place(i, place)
            if config.attention_block and place != slot:
                raise ValueError(f"places[{i}]: expected {slot} (its slot, by which this model tells blocks apart), found {place}")
            following = slot + 1
        seen = max(held, following)
        if config.attention_block and len(shadows):
            raise ValueError(f"twins[{shadow_begin}]: expected -1 (rows of this model see blocks, and a shadow has none), "
                             f"found {shadows[0]}")
        for i, twin, place in zip(range(shadow_begin, own.stop), shadows.tolist(), where[ordinary:].tolist(), strict=True):
            if not 0 <= twin < seen:
                reason = "shadows are the last rows of a request" if twin == -1 else "a slot that its request sees"
                raise ValueError(f"twins[{i}]: expected 0 to {seen - 1} ({reason}), found {twin}")
            if slots is not None and slots[i] != -1:
                raise ValueError(f"slots[{i}]: expected -1 (of a shadow), found {slots[i]}")
            require_place(i, place)
        placed.append(Placed(tokens[own], mine, where, shadows, cache))
    for i in np.flatnonzero((tokens < 0) | (tokens >= config.vocabulary))[:1]:
        raise ValueError(f"tokens[{i}]: expected 0 to {config.vocabulary - 1}, found {tokens[i]}")
    for i in np.flatnonzero((rows < 0) | (rows >= n) | (np.diff(rows, prepend=-1) < 1))[:1]:
        raise ValueError(f"rows[{i}]: expected ascending rows below {n}, found {rows[i]}")
    return placed


def require_place(row: int, place: int) -> None:
    if not 0 <= place < MAX_POSITIONS:
        raise ValueError(f"places[{row}]: expected 0 to {MAX_POSITIONS - 1}, found {place}")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: its role in the engine and its shape, [out, in] for a matrix."""

    role: str
    layer: int
    shape: tuple[int, ...]
    expert: int = -1


@dataclass(frozen=True)
class IntegerRows:
    """Rows of a matrix that are stored as integers: a weight is its value times the scale of its group of columns."""

    values: NDArray[np.int8]  # [rows, columns]
    scales: NDArray[np.float32]  # [rows, columns / group]

    @property
    def size(self) -> int:
        return self.values.size

    def floats(self) -> NDArray[np.float32]:
        rows, columns = self.values.shape
        grouped = self.values.reshape(rows, self.scales.shape[1], -1) * self.scales[:, :, None]
        return grouped.reshape(rows, columns)


class TensorSource(Protocol):
    """Where weights come from: a checkpoint folder, a GGUF file or a random generator."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def name(self) -> str:
        """Where the weights lie."""
        ...

    def fingerprint(self) -> list[Any]:
        """Changes when the weights do, as far as that can be seen without reading all of them."""
        ...

    def slices(self) -> Iterator[tuple[TensorSpec, int, NDArray[Any] | IntegerRows]]:
        """Every tensor in slices of rows: (tensor, first row, rows), float32, float16, bfloat16 or integers."""
        ...


def tensor_specs(config: ModelConfig) -> list[TensorSpec]:
    """The tensors of a model, in the order of the forward pass."""
    d, mlp, q, kv = config.d_model, config.mlp_hidden_size, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    specs = [TensorSpec("embedding", -1, (config.vocabulary, d))]
    for i in range(config.n_layers):
        specs += [
            TensorSpec("attn_norm", i, (d,)),
            TensorSpec("q_proj", i, (q, d)),
            TensorSpec("k_proj", i, (kv, d)),
            TensorSpec("v_proj", i, (kv, d)),
        ]
        if config.qkv_bias:
            specs += [TensorSpec("q_bias", i, (q,)), TensorSpec("k_bias", i, (kv,)), TensorSpec("v_bias", i, (kv,))]
        if config.qk_norm:
            specs += [TensorSpec("q_norm", i, (config.head_dim,)), TensorSpec("k_norm", i, (config.head_dim,))]
        specs += [TensorSpec("o_proj", i, (d, q)), TensorSpec("mlp_norm", i, (d,))]
        if config.has_experts(i):
            specs.append(TensorSpec("router", i, (config.n_experts, d)))
            if config.routing == "sigmoid":
                specs.append(TensorSpec("router_bias", i, (config.n_experts,)))
            for e in range(config.n_experts):
                specs += [TensorSpec(f"expert_{role}", i, shape, e) for role, shape in gated_mlp(d, config.expert_hidden_size)]
            if config.shared_expert_hidden_size:
                specs += [TensorSpec(f"shared_{role}", i, shape) for role, shape in gated_mlp(d, config.shared_expert_hidden_size)]
        else:
            specs += [TensorSpec(role, i, shape) for role, shape in gated_mlp(d, mlp)]
    specs.append(TensorSpec("final_norm", -1, (d,)))
    if not config.weight_tying:
        specs.append(TensorSpec("head", -1, (config.vocabulary, d)))
    return specs


def gated_mlp(d: int, hidden: int) -> list[tuple[str, tuple[int, int]]]:
    return [("gate_proj", (hidden, d)), ("up_proj", (hidden, d)), ("down_proj", (d, hidden))]
