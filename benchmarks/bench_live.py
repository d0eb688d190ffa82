"""The live view: what it adds to an answer. Its share of the time is the quality number."""
from __future__ import annotations

import io
import time

from llada_native import LiveView, LLaDAForCausalLM

PROMPTS = ["Sort these numbers: 31, 7, 52, 12."]


class Terminal(io.StringIO):
    """Takes what it is given."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Live:
    """A run of the demo model with the view on a terminal; canvases of 64 and 256 tokens, alone and eight at a time."""

    params = ((64, 256), (1, 8))
    param_names = ("gen_length", "prompts")

    def setup(self, gen_length: int, prompts: int) -> None:
        self.model = LLaDAForCausalLM()

    def time_generate(self, gen_length: int, prompts: int) -> None:
        self.model.generate(PROMPTS * prompts, gen_length=gen_length, live=LiveView(Terminal()))

    def track_share(self, gen_length: int, prompts: int) -> float:
        """Of the time, in percent, that frames take."""
        spent = 0.0

        class Timed(LiveView):
            def __call__(self, step):  # type: ignore[no-untyped-def]
                nonlocal spent
                start = time.perf_counter()
                super().__call__(step)
                spent += time.perf_counter() - start

        start = time.perf_counter()
        self.model.generate(PROMPTS * prompts, gen_length=gen_length, live=Timed(Terminal()))
        return 100 * spent / (time.perf_counter() - start)

    track_share.unit = "%"  # type: ignore[attr-defined]
