"""One linear layer at the shapes of LLaDA-8B, where a forward pass spends nearly all its time."""
from functools import cache
from statistics import median

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np

from llada_native import _native

from .common import (
    DTYPES,
    ISAS,
    ROWS,
    SHAPES,
    THREADS,
    LongCall,
    durations,
    input_and_output,
    peak_gflops,
    random_weight,
    require_isa,
    thread_count,
)

MOST_SCALAR_ROWS = 32  # the scalar build is there to run anywhere; its rate is flat from here, at seconds a call


@cache
def packed(isa, dtype, shape):
    return _native.PackedLinear(random_weight(shape), dtype, isa)


class Linear(LongCall):
    """Time and rate of `x @ weight.T`, weights packed beforehand as in a model."""

    params = (ISAS, DTYPES, tuple(SHAPES), ROWS, THREADS)
    param_names = ("isa", "dtype", "shape", "rows", "threads")

    def setup(self, isa, dtype, shape, rows, threads):
        require_isa(isa)
        if isa == "scalar" and rows > MOST_SCALAR_ROWS:
            raise NotImplementedError(f"scalar: measured up to {MOST_SCALAR_ROWS} rows")
        self.threads = thread_count(threads)
        self.layer = packed(isa, dtype, shape)
        self.x, self.out = input_and_output(shape, rows)

    def call(self):
        self.layer(self.x, self.out, self.threads)

    def rate(self, shape, rows):
        inputs, outputs = SHAPES[shape]
        return 2e-9 * rows * inputs * outputs / median(durations(self.call))

    def time_linear(self, *_):
        self.call()

    time_linear.version = "1"

    def track_gflops(self, isa, dtype, shape, rows, threads):
        return self.rate(shape, rows)

    track_gflops.version = "1"
    track_gflops.unit = "GFLOP/s"

    def track_fraction_of_peak(self, isa, dtype, shape, rows, threads):
        """The rate over `peak_gflops` times threads. Measured before and after, so that a change of the clock shows in both.

        With all threads the ideal is a little below 1: the peak of one core alone is often at a higher clock.
        """
        before = peak_gflops(isa)
        rate = self.rate(shape, rows)
        return rate / (self.threads * max(before, peak_gflops(isa)))

    track_fraction_of_peak.version = "1"
    track_fraction_of_peak.unit = "fraction"


class LinearError(LongCall):
    """Error of the arithmetic. Neither threads nor the number of rows change a bit of it, so neither is a parameter."""

    params = (ISAS, DTYPES, tuple(SHAPES))
    param_names = ("isa", "dtype", "shape")
    rows = 8
    columns = 64

    def setup(self, isa, dtype, shape):
        require_isa(isa)
        self.layer = packed(isa, dtype, shape)
        self.x, self.out = input_and_output(shape, self.rows)

    def track_error(self, isa, dtype, shape):
        """Largest error against float64, over the largest output. Float weights are as held: rounding to bfloat16 is left out."""
        self.layer(self.x, self.out)
        weight = random_weight(shape)[-self.columns:]
        held = (weight if dtype.startswith("int") else weight.astype(dtype)).astype(np.float64)
        exact = self.x.astype(np.float64) @ held.T
        return np.abs(self.out[:, -self.columns:] - exact).max() / np.abs(exact).max()

    track_error.version = "1"
    track_error.unit = "of the largest output"
