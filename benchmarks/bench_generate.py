"""Whole answers of the demo model: prompts in, text out."""
from functools import cache
from statistics import median
from time import perf_counter

from llada_native import LLaDAForCausalLM

from .common import LongCall, durations

GEN_LENGTH = 64
BLOCK_LENGTH = 32
TURNS = 7
# Of one length, so that a batch is that many times the work of one prompt.
PROMPTS = [f"Sort these numbers: {n}1, 7, {n}2, 12." for n in range(2, 10)]

# Answers of all lengths.
MIXED = ["What is 17 plus 25?", "Sort these numbers: 31, 7, 52, 12.", "What is 64 minus 19?", "Reverse the letters: planet",
         "Write a short story about a fox.", "What is 3 plus 4?", "Sort these numbers: 9, 45, 3.", "What is 6 times 7?"]


@cache
def demo(dtype="auto"):
    return LLaDAForCausalLM.from_pretrained(dtype=dtype)


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

    def track_fraction_outside_forward(self, *_):
        """The share of the sampler and of Python. It is largest for a model as small as this."""
        return median(1 - t["forward"] / t["total"] for t in self.timings())

    track_fraction_outside_forward.version = "1"
    track_fraction_outside_forward.unit = "fraction"


class Presets(Generate):
    """Prompts of several kinds and lengths with an end to their answers, alone and together."""

    params = (("reference", "balanced", "fast"), (1, 8))
    param_names = ("preset", "batch")

    def setup(self, preset, batch):
        self.model, self.preset = demo(), preset
        self.calls = [MIXED[i:i + batch] for i in range(0, len(MIXED), batch)]

    def call(self):
        return [self.model.generate(prompts, gen_length=GEN_LENGTH, block_length=BLOCK_LENGTH, preset=self.preset, early_stop=True)
                for prompts in self.calls]

    def timings(self):
        """Of all prompts, several times once warm."""
        runs = []
        counted = len(durations(lambda: runs.append(self.call())))
        return [{key: sum(r.timings[key] for r in run) for key in run[0].timings} for run in runs[-counted:]]

    def track_tokens_per_second(self, *_):
        """Of the answers, in all: seconds of the calls, prompts encoded and text decoded."""
        tokens = sum(n for result in self.call() for n in result.answer_lengths)
        return tokens / median(durations(self.call))

    track_tokens_per_second.version = "1"
    track_tokens_per_second.unit = "token/s"

    def track_rows_per_token(self, *_):
        results = self.call()
        return sum(r.rows_computed for r in results) / sum(n for r in results for n in r.answer_lengths)

    track_rows_per_token.version = "1"
    track_rows_per_token.unit = "row/token"

    def track_error(self, preset, batch):
        """Answers that are not those of the reference sampler."""
        wanted = self.model.generate(MIXED, gen_length=GEN_LENGTH, block_length=BLOCK_LENGTH).text
        return sum(found != right for found, right in zip((t for r in self.call() for t in r.text), wanted, strict=True))

    track_error.version = "1"
    track_error.unit = "answers"


class Together(LongCall):
    """Prompts of all lengths in one call and one by one, in turns."""

    params = (("reference", "balanced", "fast"), ("float32", "int8"))
    param_names = ("preset", "dtype")

    def track_gain(self, preset, dtype):
        """Of throughput: how many times as long the prompts take one by one."""
        def seconds(calls):
            start = perf_counter()
            for prompts in calls:
                demo(dtype).generate(prompts, gen_length=GEN_LENGTH, block_length=BLOCK_LENGTH, preset=preset, early_stop=True)
            return perf_counter() - start

        turns = [[seconds(calls) for calls in ([[prompt] for prompt in MIXED], [MIXED])] for _ in range(TURNS + 1)][1:]
        apart, together = map(median, zip(*turns, strict=True))
        return apart / together

    track_gain.version = "1"
    track_gain.unit = "ratio"
