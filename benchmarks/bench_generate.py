"""Whole answers of the demo model: prompts in, text out."""
from functools import cache
from statistics import median

from llada_native import LLaDAForCausalLM

from .common import LongCall, durations

GEN_LENGTH = 64
BLOCK_LENGTH = 32
# Of one length, so that a batch is that many times the work of one prompt.
PROMPTS = [f"Sort these numbers: {n}1, 7, {n}2, 12." for n in range(2, 10)]


@cache
def demo():
    return LLaDAForCausalLM.from_pretrained()


class Generate(LongCall):
    """One token a step, greedy, on every core."""

    params = (1, 8)
    param_names = ("batch",)

    def setup(self, batch):
        self.model = demo()
        self.prompts = PROMPTS[:batch]

    def call(self):
        return self.model.generate(self.prompts, gen_length=GEN_LENGTH, block_length=BLOCK_LENGTH)

    def timings(self):
        """Of several runs once warm."""
        results = []
        counted = len(durations(lambda: results.append(self.call())))
        return [result.timings for result in results[-counted:]]

    def time_generate(self, *_):
        self.call()

    time_generate.version = "1"

    def peakmem_generate(self, *_):
        """Of the whole process, Python and NumPy included."""
        self.call()

    peakmem_generate.version = "1"

    def track_tokens_per_second(self, batch):
        """Of the canvas, end tokens and what follows them included: the work does not depend on the answers."""
        return median(GEN_LENGTH * batch / t["total"] for t in self.timings())

    track_tokens_per_second.version = "1"
    track_tokens_per_second.unit = "token/s"

    def track_fraction_outside_forward(self, batch):
        """The share of the sampler and of Python. It is largest for a model as small as this."""
        return median(1 - t["forward"] / t["total"] for t in self.timings())

    track_fraction_outside_forward.version = "1"
    track_fraction_outside_forward.unit = "fraction"
