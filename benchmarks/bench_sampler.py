"""The sampler over LLaDA-8B's vocabulary: the work of a denoising step that is not the model's."""
from functools import cache

import numpy as np

from llada_native import _sampler
from llada_native.canvas import random_streams
from llada_native.denoiser import VOCABULARY_TILE

from .common import LLADA_8B, ShortCall

ROWS = 32  # a block with every mask still in place


@cache
def tiles():
    """Logits of the whole vocabulary, as the head delivers them. The sampler leaves them as they are: no token is suppressed."""
    rng, vocabulary = np.random.default_rng(0), LLADA_8B.vocabulary
    return [(begin, rng.standard_normal((ROWS, min(VOCABULARY_TILE, vocabulary - begin)), np.float32))
            for begin in range(0, vocabulary, VOCABULARY_TILE)]


class Sampler(ShortCall):
    """Greedy, and with Gumbel noise: a random number and two logarithms a logit."""

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
