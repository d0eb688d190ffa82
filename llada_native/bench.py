"""`python -m llada_native bench`: what this machine makes of LLaDA-8B's matrix products, in one table."""
from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from . import _native
from .machine import cpu_info

D_MODEL, MLP, LAYERS = 4096, 12288, 32
# Matrix products of one layer by shape [outputs, inputs]: queries, keys, values, output; gate, up; down.
SHAPES = {(D_MODEL, D_MODEL): 4, (MLP, D_MODEL): 2, (D_MODEL, MLP): 1}
MULTIPLY_ADDS = LAYERS * sum(count * outputs * inputs for (outputs, inputs), count in SHAPES.items())  # a row
FORMATS = (("float32", 128), ("bfloat16", 128), ("float16", 128), ("int8", 128), ("int4", 128), ("int4", 64), ("int4", 32))
SECONDS = 0.4  # spent on one figure


def seconds_of(call: Callable[[], object]) -> float:
    """Median of calls for `SECONDS`, three at least, after one that is not counted."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return median(samples)


def measure(rows: list[int], threads: int, isa: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Rate and time of a whole forward's products for every format; `report` hears each as it is known."""
    values = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    best = _native.peak_gflops(isa) * threads
    for dtype, group_size in FORMATS:
        layers = {shape: _native.PackedLinear(np.resize(values, shape), dtype, isa, group_size) for shape in SHAPES}
        for n in rows:
            seconds = 0.0
            for (outputs, inputs), count in SHAPES.items():
                x, out = np.resize(values, (n, inputs)), np.ones((n, outputs), np.float32)
                layer = layers[outputs, inputs]
                seconds += LAYERS * count * seconds_of(lambda layer=layer, x=x, out=out: layer(x, out, threads))  # type: ignore[misc]
            rate = 2e-9 * n * MULTIPLY_ADDS / seconds
            report({"dtype": dtype, "group_size": group_size if dtype.startswith("int") else None, "rows": n, "gflops": round(rate, 1),
                    "fraction_of_peak": round(rate / best, 3), "milliseconds": round(1e3 * seconds, 1)})


def machine() -> dict[str, Any]:
    """What the table stands on."""
    info = cpu_info()
    return {"isa": info["active_isa"], "num_threads": info["num_threads"]}
