"""What the benchmarks share: shapes of the models, formats of weights, settings of asv, clocks, and the peak of a core."""
from __future__ import annotations

from functools import cache

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from numpy.typing import NDArray

from llada_native import ModelConfig, _native, bench, cpu_info
from llada_native.bench import WARMUP
from llada_native.bench import durations as durations  # the clock of `llada-native bench`
from llada_native.bench import seconds_of as seconds_of
from llada_native.bench import warm_up as warm_up

LLADA_8B = ModelConfig(n_layers=32, d_model=4096, n_heads=32, n_kv_heads=32, mlp_hidden_size=12288, vocabulary=126464,
                       max_sequence_length=4096, rope_theta=5e5, rms_norm_eps=1e-5, weight_tying=False)

# One layer of LLaDA-MoE-7B-A1B and of LLaDA2.0-mini, as their config.json has them, and the width of an MLP with the multiply-adds of the
# experts that a row has. A small vocabulary keeps the embedding and the head out of the memory.
LLADA_MOE_LAYER = {
    "architectures": ["LLaDAMoEModelLM"], "hidden_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "expert_intermediate_size": 1024, "dense_intermediate_size": 8192,
    "shared_expert_intermediate_size": None, "moe_layer_freq": [1], "qk_layernorm": True, "partial_rotary_factor": 1, "rope_theta": 50000,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "max_position_embeddings": 4096, "vocab_size": 512}
LLADA2_MINI_LAYER = {
    "architectures": ["LLaDA2MoeModelLM"], "hidden_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512, "num_shared_experts": 1, "n_group": 8,
    "topk_group": 4, "first_k_dense_replace": 0, "intermediate_size": 5120, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "score_function": "sigmoid", "router_dtype": "fp32", "moe_router_enable_expert_bias": True, "use_qk_norm": True, "use_bias": False,
    "use_qkv_bias": False, "norm_head": False, "partial_rotary_factor": 0.5, "rope_theta": 600000, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "max_position_embeddings": 32768, "vocab_size": 512}
EXPERT_LAYERS = {"LLaDA-MoE": LLADA_MOE_LAYER, "LLaDA2-mini": LLADA2_MINI_LAYER}


def shapes(*layers: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Linear layers of (inputs, outputs) by the name "inputs x outputs"."""
    return {f"{inputs}x{outputs}": (inputs, outputs) for inputs, outputs in layers}


# Of attention, into the MLP, out of it; an expert has an MLP of its own. The demo model's head is as small as its other layers.
LLADA_8B_SHAPES = shapes((4096, 4096), (4096, 12288), (12288, 4096))
LLADA_MOE_SHAPES = shapes((2048, 2048), (2048, 1024), (1024, 2048))
DEMO_SHAPES = shapes((128, 128), (128, 384), (384, 128), (128, 512))
SHAPES = LLADA_8B_SHAPES | LLADA_MOE_SHAPES | DEMO_SHAPES
# From one token, where memory is the limit, to a batch, where arithmetic is.
ROWS = (1, 8, 32, 64, 160, 512)
DTYPES = ("float32", "bfloat16", "bfloat16_fast", "float16", "int8", "int4")  # integers in groups of 128
# What a linear layer stores: dtype, and weights that share a scale.
FORMATS = {dtype: (dtype, 128) for dtype in DTYPES[:4]} | {
    f"{dtype}-{group}": (dtype, group) for dtype in ("int8", "int4") for group in (32, 64, 128)}
ISAS = tuple(cpu_info()["isas"])
THREADS = (1, "all")

class ShortCall:
    """Settings for calls of milliseconds.

    asv runs setup before every sample, so setups keep what they make (functools.cache) and a sample is a single call: with more,
    asv would run setup between them.
    """

    number = 1
    repeat = (20, 200, 5.0)
    warmup_time = WARMUP
    timeout = 600


class LongCall(ShortCall):
    """Settings for calls of 0.1 s and more. In one process (rounds): a second one would spend more on setup than on samples."""

    repeat = (3, 7, 60.0)
    rounds = 1


def require_isa(isa: str) -> None:
    """Skip the benchmark where the processor lacks an instruction set."""
    if not cpu_info()["isas"][isa]:
        raise NotImplementedError(f"this processor lacks {isa}")


def thread_count(threads: int | str) -> int:
    """The value of a parameter from THREADS; skips "all" where that is one thread, which another parameter measures."""
    if threads != "all":
        return int(threads)
    cores = cpu_info()["num_threads"]
    if cores == 1:
        raise NotImplementedError("one core: the same as threads=1")
    return cores


def peak_gflops(isa: str) -> float:
    """GFLOP/s of one core in float32 fused multiply-adds of a build, at the clock of this moment, which need not be known.

    The operands never leave the registers, so no product of float32 matrices on one core is faster; integer products may be.
    """
    return _native.peak_gflops(isa)


@cache
def random_weight(shape: str) -> NDArray[np.float32]:
    """A weight [outputs, inputs] of SHAPES."""
    inputs, outputs = SHAPES[shape]
    return bench.weight(outputs, inputs)


@cache
def packed_linear(isa: str, weight_format: str, shape: str) -> _native.PackedLinear:
    """The layer of a format from FORMATS and a shape from SHAPES."""
    dtype, group = FORMATS[weight_format]
    return _native.PackedLinear(random_weight(shape), dtype, isa, group)


@cache
def input_and_output(shape: str, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Arrays x and out for a weight of SHAPES, their pages in memory."""
    return bench.input_and_output(*SHAPES[shape], rows)
