"""What the decoding loop asks of a forward pass, and the table of a model's tensors."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig


class Cache(Protocol):
    """Keys and values of one request, kept between forward passes of the backend that made it."""

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
               positions: NDArray[np.int32] | None = None, caches: Sequence[Any] | None = None) -> NDArray[Any]:
        """Final-norm output [len(rows), width] of the selected rows of requests laid end to end.

        A request with a cache stands at its position: its keys and values replace those positions or extend the cache, and its rows
        see all that the cache then holds.
        """
        ...

    def head(self, hidden: NDArray[Any], begin: int, end: int, out: NDArray[np.float32]) -> None:
        """out[rows, end - begin] = logits of the tokens begin to end."""
        ...

    def create_kv_cache(self) -> Cache: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: its role in the engine and its shape, [out, in] for a matrix."""

    role: str
    layer: int
    shape: tuple[int, ...]


class TensorSource(Protocol):
    """Where weights come from: a checkpoint folder or a random generator."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def name(self) -> str:
        """Where the weights lie."""
        ...

    def fingerprint(self) -> list[Any]:
        """Changes when the weights do, as far as that can be seen without reading all of them."""
        ...

    def slices(self) -> Iterator[tuple[TensorSpec, int, NDArray[Any]]]:
        """Every tensor in slices of rows: (tensor, first row, rows), float32, float16 or bfloat16."""
        ...


def tensor_specs(config: ModelConfig) -> list[TensorSpec]:
    """The tensors of a dense LLaDA, in the order of the forward pass."""
    d, mlp, kv = config.d_model, config.mlp_hidden_size, config.n_kv_heads * config.head_dim
    specs = [TensorSpec("embedding", -1, (config.vocabulary, d))]
    for i in range(config.n_layers):
        specs += [
            TensorSpec("attn_norm", i, (d,)),
            TensorSpec("q_proj", i, (d, d)),
            TensorSpec("k_proj", i, (kv, d)),
            TensorSpec("v_proj", i, (kv, d)),
            TensorSpec("o_proj", i, (d, d)),
            TensorSpec("mlp_norm", i, (d,)),
            TensorSpec("gate_proj", i, (mlp, d)),
            TensorSpec("up_proj", i, (mlp, d)),
            TensorSpec("down_proj", i, (d, mlp)),
        ]
    specs.append(TensorSpec("final_norm", -1, (d,)))
    if not config.weight_tying:
        specs.append(TensorSpec("head", -1, (config.vocabulary, d)))
    return specs
