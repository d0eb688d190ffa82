"""What threads give and what they cost: the speed of all of them over that of one, and the price of starting them."""
import time
from dataclasses import replace
from functools import cache
from statistics import median

import numpy as np

from llada_native import LLaDAForCausalLM, _native, cpu_info

from .common import DTYPES, ROWS, SHAPES, LongCall, ShortCall, input_and_output, packed_linear, seconds_of, thread_count

FORMATS = tuple(f"{dtype}-128" if dtype.startswith("int") else dtype for dtype in DTYPES)
ASLEEP = 0.001  # seconds until threads without work have gone to sleep


def seconds(call, *arguments):
    return seconds_of(lambda: call(*arguments))


def speedup(call, threads):
    """Time on one thread over time on all. One thread before and after, so that a change of the clock shows in both."""
    before = seconds(call, 1)
    found = seconds(call, threads)
    return (before + seconds(call, 1)) / 2 / found


class LinearThreads(LongCall):
    """One linear layer on every core, in the build that new models use."""

    params = (FORMATS, tuple(SHAPES), ROWS)
    param_names = ("format", "shape", "rows")
    repeat = (3, 50, 1.0)

    def setup(self, weight_format, shape, rows):
        self.threads = thread_count("all")
        self.layer = packed_linear(cpu_info()["active_isa"], weight_format, shape)
        self.x, self.out = input_and_output(shape, rows)

    def call(self, threads):
        self.layer(self.x, self.out, threads)

    def time_linear(self, *_):
        self.call(self.threads)

    time_linear.version = "2"

    def track_speedup_of_threads(self, *_):
        return speedup(self.call, self.threads)

    track_speedup_of_threads.version = "2"
    track_speedup_of_threads.unit = "time of one thread / of all"


@cache
def demo_layers(layers):
    """The demo model's shape with random weights and more layers."""
    config = LLaDAForCausalLM.from_pretrained().config
    return LLaDAForCausalLM.random(replace(config, n_layers=layers), "float32")


class SmallForward(ShortCall):
    """Forward passes of the demo model's shape: a parallel region lasts microseconds, so that its start counts."""

    params = (8, 32, 128)
    param_names = ("rows",)
    layers = 32

    def setup(self, rows):
        self.threads = thread_count("all")
        self.backend = demo_layers(self.layers)._backend
        tokens = np.random.default_rng(0).integers(0, self.backend.config.vocabulary, rows, np.int32)
        self.arguments = tokens, np.array([rows], np.int32), np.arange(rows, dtype=np.int32)

    def call(self, threads):
        self.backend.num_threads = threads
        self.backend.hidden(*self.arguments)

    def track_speedup_of_threads(self, *_):
        return speedup(self.call, self.threads)

    track_speedup_of_threads.version = "1"
    track_speedup_of_threads.unit = "time of one thread / of all"

    def track_layer_overhead(self, *_):
        """Time of a layer on all threads beyond one thread's time shared out: the start and the end of its parallel regions, and
        what their threads wait for each other."""
        one, every = seconds(self.call, 1), seconds(self.call, self.threads)
        return 1e6 * (every - one / self.threads) / self.layers

    track_layer_overhead.version = "1"
    track_layer_overhead.unit = "microseconds"


def seconds_asleep(call, *arguments):
    """Of a call that finds the threads asleep."""
    call(*arguments)
    samples = []
    for _ in range(200):
        time.sleep(ASLEEP)
        start = time.perf_counter()
        call(*arguments)
        samples.append(time.perf_counter() - start)
    return median(samples)


class Start(ShortCall):
    """Waking the threads, as a forward pass does once. The layers of one find them awake: see SmallForward."""

    params = ("team", "region")
    param_names = ("part",)

    def setup(self, part):
        self.threads = thread_count("all")
        # A product of one panel stays on the caller, whose team wakes all the same. That of a region lasts a tenth of a millisecond,
        # and its weights stay in the second-level cache, so that twice the threads halve it.
        outputs, inputs, rows = (1, 32, 1) if part == "team" else (512, 512, 64)
        self.layer = _native.PackedLinear(np.ones((outputs, inputs), np.float32), "float32")
        self.x, self.out = np.ones((rows, inputs), np.float32), np.ones((rows, outputs), np.float32)

    def call(self, threads):
        self.layer(self.x, self.out, threads)

    def track_overhead(self, part):
        """Time of a call on all threads beyond that on one, or beyond that shared out where the product is."""
        one, every = seconds_asleep(self.call, 1), seconds_asleep(self.call, self.threads)
        return 1e6 * (every - (one if part == "team" else one / self.threads))

    track_overhead.version = "1"
    track_overhead.unit = "microseconds"
