"""The sampler over LLaDA-8B's vocabulary: the work of a denoising step that is not the model's."""
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np

from llada_native import _native, _sampler, cpu_info
from llada_native.canvas import random_streams
from llada_native.denoiser import VOCABULARY_TILE, Denoiser

from .common import LLADA_8B, LongCall, ShortCall, durations

ROWS = 32  # a block with every mask still in place


@cache
def tiles():
    """Logits of the whole vocabulary, as the head delivers them. The sampler leaves them as they are: no token is suppressed."""
    rng, vocabulary = np.random.default_rng(0), LLADA_8B.vocabulary
    return [(begin, rng.standard_normal((ROWS, min(VOCABULARY_TILE, vocabulary - begin)), np.float32))
            for begin in range(0, vocabulary, VOCABULARY_TILE)]


class Sampler(ShortCall):
    """Greedy, and with Gumbel noise: a random number a logit, logarithms for those that may win."""

    params = (0.0, 0.7)
    param_names = ("temperature",)

    def setup(self, temperature):
        self.tiles = tiles()
        self.sampler = _sampler.RowSampler()
        self.sampler.begin([_sampler.Rule(random_streams(0, 1)[0], temperature)], np.zeros(ROWS, np.int32))

    def time_consume(self, *_):
        for begin, tile in self.tiles:
            self.sampler.consume(tile, begin)

    time_consume.version = "1"


# The head is that of LLaDA-8B; the rest, which no benchmark here runs, takes no memory to speak of.
HEAD_ONLY = replace(LLADA_8B, n_layers=1, mlp_hidden_size=1, weight_tying=True)


@cache
def head(dtype):
    """A model of which only the head has weights."""
    model = _native.NativeModel(HEAD_ONLY, dtype, cpu_info()["num_threads"])
    values = np.random.default_rng(0).standard_normal(1_000_003, np.float32) / 64
    for begin in range(0, HEAD_ONLY.vocabulary, VOCABULARY_TILE):
        rows = min(VOCABULARY_TILE, HEAD_ONLY.vocabulary - begin)
        model.load("embedding", 0, begin, np.resize(values, (rows, HEAD_ONLY.d_model)))
    return model


class HeadAndSampler(LongCall):
    """What follows a forward pass in a step: the head in vocabulary tiles, and each row's draw and softmax statistics from them.

    Models of 8-bit and 4-bit weights have the same head.
    """

    params = (("float32", "bfloat16", "int8"), (1, 8, 32, 64))
    param_names = ("dtype", "rows")

    def setup(self, dtype, rows):
        self.denoiser = Denoiser(head(dtype))
        self.hidden = np.random.default_rng(1).standard_normal((rows, LLADA_8B.d_model), np.float32)
        self.rules = [_sampler.Rule(random_streams(0, 1)[0])]
        self.owners = np.zeros(rows, np.int32)

    def call(self):
        self.denoiser._draw(self.hidden, self.rules, self.owners, frozenset(), None)

    def time_step(self, *_):
        self.call()

    time_step.version = "1"

    def track_gflops(self, dtype, rows):
        """Of the head's matrix product over the time of both."""
        return 2e-9 * rows * LLADA_8B.vocabulary * LLADA_8B.d_model / median(durations(self.call))

    track_gflops.version = "1"
    track_gflops.unit = "GFLOP/s"

    def track_fraction_in_sampler(self, *_):
        durations(self.call)
        return self.denoiser.seconds_sample / (self.denoiser.seconds_sample + self.denoiser.seconds_forward)

    track_fraction_in_sampler.version = "1"
    track_fraction_in_sampler.unit = "fraction"
