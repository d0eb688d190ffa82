"""How matrix products are timed, and `llada-native bench`: LLaDA-8B's in one table. The benchmarks of asv take their clock from here."""
from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .machine import cpu_info

D_MODEL, MLP, LAYERS = 4096, 12288, 32
# Matrix products of one layer by shape [outputs, inputs]: queries, keys, values, output; gate, up; down.
SHAPES = {(D_MODEL, D_MODEL): 4, (MLP, D_MODEL): 2, (D_MODEL, MLP): 1}
MULTIPLY_ADDS = LAYERS * sum(count * outputs * inputs for (outputs, inputs), count in SHAPES.items())  # a row
FORMATS = (("float32", 128), ("bfloat16", 128), ("bfloat16_fast", 128), ("float16", 128), ("int8", 128), ("int4", 128), ("int4", 64),
           ("int4", 32))
SECONDS = 0.5  # spent on one product
MOST_CALLS = 1000
# Seconds of calls that are not counted. A sleeping worker may be woken on the caller's core, where it waits some milliseconds to
# be moved to a free one; in a forward pass, whose layers follow each other, it is awake.
WARMUP = 0.1


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


def seconds_of(call: Callable[[], object]) -> float:
    """Of one call of a product: the median of those that SECONDS hold."""
    return median(durations(call, most=MOST_CALLS, limit=SECONDS))


def weight(outputs: int, inputs: int) -> NDArray[np.float32]:
    """[outputs, inputs]: a million normal numbers over and over; fifty take longer to draw than most calls."""
    return np.resize(np.random.default_rng(0).standard_normal(1_000_003, np.float32), (outputs, inputs))


def rows_apart(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same rows as a forward pass keeps them: each at the begin of a cache line, an odd number of lines apart (src_cpp/ops/rows.h)."""
    rows, width = array.shape
    stride = -(-width // 32) * 32 + 16
    memory = np.empty(rows * stride + 16, np.float32)
    begin = -memory.ctypes.data % 64 // 4
    found = memory[begin:begin + rows * stride].reshape(rows, stride)[:, :width]
    found[:] = array
    return found


def input_and_output(inputs: int, outputs: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Arrays x and out of a product, their pages in memory."""
    x, out = np.random.default_rng(1).standard_normal((rows, inputs), np.float32), np.ones((rows, outputs), np.float32)
    return rows_apart(x), rows_apart(out)


def measure(rows: list[int], threads: int, isa: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Rate and time of a whole forward's products for every format; `report` hears each as it is known.

    The peak is measured before and after, so that a change of the clock shows in both.
    """
    for dtype, group_size in FORMATS:
        layers = {shape: _native.PackedLinear(weight(*shape), dtype, isa, group_size) for shape in SHAPES}
        for n in rows:
            before, seconds, products = _native.peak_gflops(isa), 0.0, {}
            for (outputs, inputs), count in SHAPES.items():
                x, out = input_and_output(inputs, outputs, n)
                layer = layers[outputs, inputs]
                one = seconds_of(lambda layer=layer, x=x, out=out: layer(x, out, threads))  # type: ignore[misc]
                products[f"{inputs}x{outputs}"] = round(2e-9 * n * inputs * outputs / one, 1)
                seconds += LAYERS * count * one
            rate, peak = 2e-9 * n * MULTIPLY_ADDS / seconds, threads * max(before, _native.peak_gflops(isa))
            report({"dtype": dtype, "group_size": group_size if dtype.startswith("int") else None, "rows": n, "gflops": round(rate, 1),
                    "fraction_of_peak": round(rate / peak, 3), "milliseconds": round(1e3 * seconds, 1), "products": products})


def machine() -> dict[str, Any]:
    """What the table stands on."""
    info = cpu_info()
    return {"isa": info["active_isa"], "num_threads": info["num_threads"]}
