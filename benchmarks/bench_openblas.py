"""The rival: NumPy's float32 matmul, which is OpenBLAS in the wheels of PyPI, at the layers of LLaDA-8B.

Both sides use every core. For one core each, set OPENBLAS_NUM_THREADS=1 and LLADA_NUM_THREADS=1, always both. OpenBLAS chooses
its kernels by the processor: see __init__.py.
"""
import time
from functools import cache
from statistics import median

import numpy as np

from llada_native import _native, cpu_info

from .common import LLADA_8B_SHAPES, ROWS, LongCall, input_and_output, random_weight, warm_up

PAIRS = 5
PAUSE = 0.1  # seconds: a BLAS's idle threads spin for tens of milliseconds, on the cores of whoever comes next


@cache
def packed(shape):
    return _native.PackedLinear(random_weight(shape), "float32")


def seconds(call):
    """Of one call, the rival's threads asleep and its own awake."""
    time.sleep(PAUSE)
    warm_up(call)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Matmul(LongCall):
    """`x @ weight.T` in NumPy, the weight stored [outputs, inputs] as in a checkpoint."""

    params = (tuple(LLADA_8B_SHAPES), ROWS)
    param_names = ("shape", "rows")

    def setup(self, shape, rows):
        self.weight = random_weight(shape)
        self.x, self.out = input_and_output(shape, rows)
        self.their_out = np.ones(self.out.shape, np.float32)  # NumPy would compute rows that lie apart elsewhere, and copy them

    def theirs(self):
        np.matmul(self.x, self.weight.T, out=self.their_out)

    def time_numpy(self, *_):
        self.theirs()

    time_numpy.version = "2"

    def track_ratio(self, shape, rows):
        """NumPy's time over ours, in the same process and in turns: above 1, ours is faster. Medians."""
        layer, threads = packed(shape), cpu_info()["num_threads"]

        def ours():
            layer(self.x, self.out, threads)

        pairs = [(seconds(self.theirs), seconds(ours)) for _ in range(PAIRS)]
        return median(theirs for theirs, _ in pairs) / median(ours for _, ours in pairs)

    track_ratio.version = "2"
    track_ratio.unit = "NumPy time / ours"
