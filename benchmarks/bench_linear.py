"""One linear layer on one core, where a forward pass spends nearly all its time. Threads are measured in bench_threads."""
import numpy as np

from .common import (
    FORMATS,
    ISAS,
    ROWS,
    SHAPES,
    LongCall,
    input_and_output,
    packed_linear,
    peak_gflops,
    random_weight,
    require_isa,
    seconds_of,
)

MOST_SCALAR_ROWS = 32  # the scalar build is there to run anywhere; its rate is flat from here, at seconds a call


class Linear(LongCall):
    """Time and rate of `x @ weight.T`, weights packed beforehand as in a model, from the layers of LLaDA-8B to those of the demo model.

    A call from Python costs some microseconds, which is most of a demo layer's time at few rows.
    """

    params = (ISAS, tuple(FORMATS), tuple(SHAPES), ROWS)
    param_names = ("isa", "format", "shape", "rows")
    repeat = (3, 50, 1.0)

    def setup(self, isa, weight_format, shape, rows):
        require_isa(isa)
        if isa == "scalar" and rows > MOST_SCALAR_ROWS:
            raise NotImplementedError(f"scalar: measured up to {MOST_SCALAR_ROWS} rows")
        self.layer = packed_linear(isa, weight_format, shape)
        self.x, self.out = input_and_output(shape, rows)

    def call(self):
        self.layer(self.x, self.out)

    def rate(self, shape, rows):
        inputs, outputs = SHAPES[shape]
        return 2e-9 * rows * inputs * outputs / seconds_of(self.call)

    def time_linear(self, *_):
        self.call()

    time_linear.version = "3"

    def track_gflops(self, isa, weight_format, shape, rows):
        return self.rate(shape, rows)

    track_gflops.version = "3"
    track_gflops.unit = "GFLOP/s"

    def track_fraction_of_peak(self, isa, weight_format, shape, rows):
        """The rate over `peak_gflops`, which is measured before and after, so that a change of the clock shows in both.

        It is the peak of float32: integer formats may exceed 1.
        """
        before = peak_gflops(isa)
        rate = self.rate(shape, rows)
        return rate / max(before, peak_gflops(isa))

    track_fraction_of_peak.version = "3"
    track_fraction_of_peak.unit = "fraction"


class LinearError(LongCall):
    """Error of the arithmetic. Neither threads nor the number of rows change a bit of it, so neither is a parameter."""

    params = (ISAS, tuple(FORMATS), tuple(SHAPES))
    param_names = ("isa", "format", "shape")
    rows = 8
    columns = 64

    def setup(self, isa, weight_format, shape):
        require_isa(isa)
        self.layer = packed_linear(isa, weight_format, shape)
        self.x, self.out = input_and_output(shape, self.rows)

    def track_error(self, isa, weight_format, shape):
        """Largest error against float64, over the largest output. Float weights are as held: rounding to 16 bits is left out."""
        self.layer(self.x, self.out)
        weight, dtype = random_weight(shape)[-self.columns:], FORMATS[weight_format][0]
        held = (weight if dtype.startswith("int") else weight.astype(dtype)).astype(np.float64)
        exact = self.x.astype(np.float64) @ held.T
        return np.abs(self.out[:, -self.columns:] - exact).max() / np.abs(exact).max()

    track_error.version = "3"
    track_error.unit = "of the largest output"
