"""What the benchmarks share: shapes of the models, formats of weights, settings of asv, clocks, and the peak of a core."""
from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np
from numpy.typing import NDArray

from llada_native import ModelConfig, _native, cpu_info

LLADA_8B = ModelConfig(n_layers=32, d_model=4096, n_heads=32, n_kv_heads=32, mlp_hidden_size=12288, vocabulary=126464,
                       max_sequence_length=4096, rope_theta=5e5, rms_norm_eps=1e-5, weight_tying=False)


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
DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")  # integers in groups of 128
# What a linear layer stores: dtype, and weights that share a scale.
FORMATS = {"float32": ("float32", 128), "bfloat16": ("bfloat16", 128), "float16": ("float16", 128)} | {
    f"{dtype}-{group}": (dtype, group) for dtype in ("int8", "int4") for group in (32, 64, 128)}
ISAS = tuple(cpu_info()["isas"])
THREADS = (1, "all")
# Seconds of calls that are not counted. A sleeping worker may be woken on the caller's core, where it waits some milliseconds to
# be moved to a free one; in a forward pass, whose layers follow each other, it is awake.
WARMUP = 0.1


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


def warm_up(call: Callable[[], object]) -> None:
    """At least one call, and calls for WARMUP seconds."""
    end = time.perf_counter() + WARMUP
    call()
    while time.perf_counter() < end:
        call()


def durations(call: Callable[[], object], least: int = 3, most: int = 15, limit: float = 2.0) -> list[float]:
    """Seconds of each call once warm: `least` of them, then more until `most` or `limit` seconds."""
    warm_up(call)
    seconds: list[float] = []
    end = time.perf_counter() + limit
    while len(seconds) < least or (len(seconds) < most and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_gflops(isa: str) -> float:
    """GFLOP/s of one core in float32 fused multiply-adds of a build, at the clock of this moment, which need not be known.

    The operands never leave the registers, so no product of float32 matrices on one core is faster; integer products may be.
    """
    return _native.peak_gflops(isa)


@cache
def random_weight(shape: str) -> NDArray[np.float32]:
    """A weight [outputs, inputs] of SHAPES: a million normal numbers over and over; fifty take longer to draw than most calls."""
    inputs, outputs = SHAPES[shape]
    return np.resize(np.random.default_rng(0).standard_normal(1_000_003, np.float32), (outputs, inputs))


@cache
def packed_linear(isa: str, weight_format: str, shape: str) -> _native.PackedLinear:
    """The layer of a format from FORMATS and a shape from SHAPES."""
    dtype, group = FORMATS[weight_format]
    return _native.PackedLinear(random_weight(shape), dtype, isa, group)


@cache
def input_and_output(shape: str, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Arrays x and out for a weight of SHAPES, their pages in memory."""
    inputs, outputs = SHAPES[shape]
    return np.random.default_rng(1).standard_normal((rows, inputs), np.float32), np.ones((rows, outputs), np.float32)
