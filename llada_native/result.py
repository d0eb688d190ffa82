"""What a generation gives back, step by step and at its end."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
Decode = Callable[[IntArray], str]


@dataclass(frozen=True)
class Step:
    """One denoising step: one forward pass. Lists have one entry a prompt.

    Attributes
    ----------
    index, n_steps : int
        Position in the schedule of max_steps steps; steps that reveal nothing are skipped.
    block, n_blocks : int
    positions : list of int32 [revealed]
        Where tokens were written, counted from the start of the prompt, surest first. What `early_stop` fills is not among them.
    tokens : list of int32 [revealed]
    confidence : list of float64 [revealed]
    masks_left : list of int
        Masks in the whole canvas after this step.
    canvas : list of int32 [gen_length]
        Every answer as it stands, masks included.
    seconds, seconds_left : float
        Since the start, and an estimate of what remains.
    text : list of str
        The settled beginning of every answer: up to its first mask or end token.
    """

    index: int
    n_steps: int
    block: int
    n_blocks: int
    positions: list[IntArray]
    tokens: list[IntArray]
    confidence: list[NDArray[np.float64]]
    masks_left: list[int]
    canvas: list[IntArray]
    seconds: float
    seconds_left: float
    _settled: Decode = field(repr=False, compare=False)

    @property
    def text(self) -> list[str]:
        return [self._settled(c) for c in self.canvas]


@dataclass(frozen=True, repr=False)
class GenerationResult:
    """Generated answers. Lists have one entry a prompt; ``str(result)`` is the text.

    Attributes
    ----------
    text : list of str
        Answers, cut at the first end token, without special tokens. Empty strings where the model has no tokenizer.
    sequences : list of int32 [prompt + gen_length]
        Prompt and whole canvas, as the reference sampler returns them.
    prompt_lengths : list of int
    finish_reason : list of {"stop", "length", "cancelled"}
        An end token was generated; the canvas is full without one; a callback ended the run.
    commit_step : list of int32 [gen_length]
        The step that wrote each position, -1 where a mask remains or `early_stop` has filled one.
    confidence : list of float64 [gen_length]
        The confidence of each token when it was written, NaN where commit_step is -1.
    answer_lengths : list of int
        Tokens before the first end token.
    n_forward : int
        Forward passes, all prompts together in each.
    rows_computed : int
        Rows that went through the transformer.
    timings : dict of str to float
        Seconds: ``forward`` (transformer and head), ``sample``, ``total``.
    backend : {"native", "reference"}
    """

    text: list[str]
    sequences: list[IntArray]
    prompt_lengths: list[int]
    finish_reason: list[str]
    commit_step: list[IntArray]
    confidence: list[NDArray[np.float64]]
    answer_lengths: list[int]
    n_forward: int
    rows_computed: int
    timings: dict[str, float]
    backend: str

    @property
    def tokens_per_second(self) -> float:
        """Tokens before the first end token, of all answers, per second."""
        return sum(self.answer_lengths) / self.timings["total"] if self.timings["total"] > 0 else 0.0

    @property
    def tokens_per_forward(self) -> float:
        return sum(self.answer_lengths) / self.n_forward if self.n_forward else 0.0

    @property
    def rows_per_token(self) -> float:
        """Rows computed for each token before the first end token: the cost of decoding, whatever the machine."""
        tokens = sum(self.answer_lengths)
        return self.rows_computed / tokens if tokens else float("inf")

    def __str__(self) -> str:
        return "\n".join(self.text)

    def __repr__(self) -> str:
        return (f"GenerationResult(text={self.text!r}, finish_reason={self.finish_reason!r}, n_forward={self.n_forward}, "
                f"tokens_per_second={self.tokens_per_second:.1f}, backend={self.backend!r})")
