"""What the decoding loop asks of a forward pass, and the table of a model's tensors."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig


class Backend(Protocol):
    """A forward pass over ragged requests. Implemented by the C++ engine and by the NumPy reference."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def closed(self) -> bool: ...

    def hidden(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[Any]:
        """Final-norm output [len(rows), d_model] of the selected rows of requests laid end to end."""
        ...

    def head(self, hidden: NDArray[Any], begin: int, end: int, out: NDArray[np.float32]) -> None:
        """out[rows, end - begin] = logits of the tokens begin to end."""
        ...

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
