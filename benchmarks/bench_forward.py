"""Forward passes up to the final norm, every row selected: what a denoising step costs without its head."""
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np

from llada_native import LLaDAForCausalLM

from .common import DTYPES, LLADA_8B, LongCall, ShortCall, durations

# All layers of LLaDA-8B cost the same, so two will do. A small vocabulary keeps the embedding and the head out of the memory.
TWO_LAYERS = replace(LLADA_8B, n_layers=2, vocabulary=512)


@cache
def two_layers(dtype):
    return LLaDAForCausalLM.random(TWO_LAYERS, dtype)


@cache
def demo():
    return LLaDAForCausalLM.from_pretrained()


def request(model, rows, requests=1):
    """Arguments of `hidden`: one request of random tokens, or several of equal length."""
    tokens = np.random.default_rng(0).integers(0, model.config.vocabulary, rows, np.int32)
    return tokens, np.full(requests, rows // requests, np.int32), np.arange(rows, dtype=np.int32)


def gigaflops(config, rows):
    """Of the matrix products of all layers: weights, scores, and values times scores."""
    weights = config.matrices() - 2 * config.vocabulary * config.d_model  # without embedding and head
    return 2e-9 * rows * (weights + 2 * config.n_layers * rows * config.d_model)


class TwoLayers(LongCall):
    """Two layers of LLaDA-8B with random weights, on every core."""

    params = (DTYPES, (32, 160))
    param_names = ("dtype", "rows")

    def setup(self, dtype, rows):
        self.model = two_layers(dtype)
        self.arguments = request(self.model, rows)

    def call(self):
        self.model._backend.hidden(*self.arguments)

    def time_forward(self, *_):
        self.call()

    time_forward.version = "1"

    def peakmem_forward(self, *_):
        """Of the whole process: Python and NumPy, the load, and the pass."""
        self.call()

    peakmem_forward.version = "1"

    def track_gflops(self, dtype, rows):
        return gigaflops(self.model.config, rows) / median(durations(self.call))

    track_gflops.version = "1"
    track_gflops.unit = "GFLOP/s"


class Demo(ShortCall):
    """The demo model, small enough that what is not arithmetic counts."""

    params = (32, 128)
    param_names = ("rows",)

    def setup(self, rows):
        self.model = demo()
        self.arguments = request(self.model, rows)

    def time_forward(self, *_):
        self.model._backend.hidden(*self.arguments)

    time_forward.version = "1"
