"""Streamers: objects that are told of an answer while it is made, by the protocol of transformers' text diffusion streamer."""
from __future__ import annotations

import sys
from typing import Any, Protocol, TextIO

import numpy as np

from . import terminal
from .result import IntArray, Step
from .tokenizer import HALF_A_CHARACTER, Tokenizer


class Streamer(Protocol):
    """What `generate(streamer=...)` takes; those of transformers are such. Values are int32 [1, tokens].

    A streamer may have `put_draft(value)` too, which hears of every pass what it guessed to follow the tokens so far, masks where it did
    not look, before `put` hears what has settled. A draft replaces the one before.
    """

    def put(self, value: Any) -> None:
        """The prompt, and then the tokens that have settled since the last call, up to the answer's end."""
        ...

    def end(self) -> None:
        """There will be no more."""
        ...


class TextStreamer:
    """Prints the answer as it settles.

    Parameters
    ----------
    tokenizer : Tokenizer
    skip_prompt : bool
    stream : text file, optional
        Default stdout. On a terminal control characters are shown instead of obeyed.
    """

    def __init__(self, tokenizer: Tokenizer, skip_prompt: bool = True, stream: TextIO | None = None) -> None:
        if not hasattr(tokenizer, "decode"):
            raise TypeError(f"tokenizer: expected that of a model, model.tokenizer, found {tokenizer!r}")
        self.tokenizer, self.skip_prompt, self.stream = tokenizer, skip_prompt, stream
        self._ids: list[int] = []
        self._printed = 0  # characters of their text
        self._before_prompt = True

    def put(self, value: Any) -> None:
        prompt, self._before_prompt = self._before_prompt, False
        if prompt and self.skip_prompt:
            return
        self._ids += np.asarray(value).ravel().tolist()
        self._print(self.tokenizer.decode(self._ids).rstrip(HALF_A_CHARACTER))

    def end(self) -> None:
        self._print(self.tokenizer.decode(self._ids), "\n")
        self._ids, self._printed, self._before_prompt = [], 0, True

    def _print(self, text: str, end: str = "") -> None:
        out = sys.stdout if self.stream is None else self.stream
        more = text[self._printed:]
        print(terminal.writable(terminal.shown(more) if terminal.is_terminal(out) else more, out), end=end, file=out, flush=True)
        self._printed = max(self._printed, len(text))


class Feed:
    """Tells a streamer of the steps of a run over one prompt.

    Raises
    ------
    TypeError
        The object is no streamer, or wants logits, which are not kept.
    """

    def __init__(self, streamer: Any) -> None:
        for name in ("put", "end"):
            if not callable(getattr(streamer, name, None)):
                raise TypeError(f"streamer: expected an object with put and end, found {streamer!r}")
        if getattr(streamer, "_takes_logits", False):
            raise TypeError("streamer: expected one that takes tokens, found one that takes logits of drafts, which are not kept")
        self.streamer = streamer
        self.drafts = callable(getattr(streamer, "put_draft", None))

    def begin(self, prompt: IntArray, ends: list[int], whole: int | None) -> None:
        """`ends` are the end tokens, and `whole` the tokens of the answer that count."""
        self._ends, self._whole, self._put = ends, whole, 0
        self.streamer.put(prompt[None])

    def __call__(self, step: Step) -> None:
        if self.drafts and step.drafts is not None and len(draft := self._cut(step.drafts[0])[self._put:]):
            self.streamer.put_draft(draft[None])
        settled = self._cut(step.trace.settled(0, step.forward))
        masks = np.flatnonzero(settled == step.trace.mask_id)
        settled = settled[:masks[0]] if len(masks) else settled
        if len(settled) > self._put:
            self.streamer.put(settled[None, self._put:])
            self._put = len(settled)

    def end(self) -> None:
        self.streamer.end()

    def _cut(self, answer: IntArray) -> IntArray:
        answer = answer[:self._whole]
        ends = np.flatnonzero(np.isin(answer, self._ends))
        return answer[:ends[0]] if len(ends) else answer
