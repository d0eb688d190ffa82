"""What is printed to stderr while one waits: a line a step with ``verbose=True``, and a bar on a terminal."""
from __future__ import annotations

import sys
import time

import numpy as np

from . import terminal
from .result import Step
from .tokenizer import Tokenizer
from .trace import Growth

MOST_TOKENS = 6  # of one step and prompt
BAR = 40  # characters, where the terminal is wide enough


def print_step(step: Step, tokenizer: Tokenizer | None) -> None:
    if sys.stderr is None:  # print would take stdout
        return
    shown = []
    events = step.trace.forwards[step.forward].events
    for i, (positions, tokens, confidence) in enumerate(zip(step.positions, step.tokens, step.confidence, strict=True)):
        parts = [f"{p}:taken back" if np.isnan(c) else f"{p}:{_text(t, tokenizer)} {c:.2f}"
                 for p, t, c in zip(positions, tokens, confidence, strict=True)]
        parts += [f"{e.added} more at {e.position}" for of, e in events if of == i and isinstance(e, Growth)]
        more = f" +{len(parts) - MOST_TOKENS}" if len(parts) > MOST_TOKENS else ""
        prefix = f"[{i}] " if len(step.positions) > 1 else ""
        shown.append(prefix + ", ".join(parts[:MOST_TOKENS]) + more)
    rate = (step.forward + 1) / step.seconds if step.seconds > 0 else 0.0
    written = "  ".join(text for text in shown if text) or "nothing written"  # a pass that was doubted, measured, or filled caches
    print(f"pass {step.forward + 1} step {step.index + 1}/{step.n_steps} block {step.block + 1}/{step.n_blocks} "
          f"masks {sum(step.masks_left)} | {written} | {rate:.1f} passes/s, {step.seconds_left:.1f} s left", file=sys.stderr, flush=True)


def _text(token: np.int32, tokenizer: Tokenizer | None) -> str:
    return repr(tokenizer.decode([int(token)], skip_special_tokens=False)) if tokenizer else str(token)


class Bar:
    """How far something is, on one line of a terminal; silent where stderr is none."""

    def __init__(self, what: str) -> None:
        self.what, self.begin, self.shown = what, time.monotonic(), -1
        self.visible = terminal.knows_escapes(sys.stderr)

    def __call__(self, fraction: float) -> None:
        percent = int(100 * fraction)
        if not self.visible or percent == self.shown:
            return
        self.shown = percent
        seconds = time.monotonic() - self.begin
        left = f", {seconds * (1 - fraction) / fraction:.0f} s left" if fraction > 0 else ""
        share = f"{percent:3} %{left}"
        columns = terminal.size(sys.stderr)[0] - 1  # a line that fills the last one may wrap, and would stay
        width = min(BAR, columns - len(f"{self.what} [] {share}"))
        bar = f"[{'#' * (width * percent // 100):{width}}] " if width > 0 else ""
        print("\r\x1b[K" + f"{self.what} {bar}{share}"[:columns], end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown >= 0:
            print(file=sys.stderr, flush=True)
