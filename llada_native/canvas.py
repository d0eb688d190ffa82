"""One request: its prompt and its answer as it stands."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ._sampler import Rule
from .result import IntArray

if TYPE_CHECKING:
    from .options import GenerationOptions


def transfer_quotas(masks: int, steps: int) -> list[int]:
    """Tokens to reveal in each step: as even as can be, the larger shares first (`get_num_transfer_tokens`). Steps beyond the masks have
    none, and are left out."""
    share, extra = divmod(masks, steps)
    return [share + (i < extra) for i in range(min(steps, masks))]


def random_streams(seed: int | Sequence[int] | None, requests: int) -> list[np.random.BitGenerator]:
    """One independent stream a request.

    One integer is the seed of the batch, whose i-th child request i draws from. A sequence gives every request a seed of its own:
    it then draws the same numbers in any batch as alone with that seed.
    """
    if seed is None or isinstance(seed, int):
        children = np.random.SeedSequence(seed).spawn(requests)
    else:
        children = [np.random.SeedSequence(s).spawn(1)[0] for s in seed]
    return [np.random.PCG64(child) for child in children]


class Canvas:
    """One request.

    Parameters
    ----------
    prompt : int32 [length]
    options : GenerationOptions
    stream : numpy.random.BitGenerator
    answer : int32 [gen_length], optional
        With masks and fixed tokens; default all masks.
    name : str
        What messages call it.
    """

    def __init__(self, prompt: IntArray, options: GenerationOptions, stream: np.random.BitGenerator,
                 answer: IntArray | None = None, name: str = "prompt 0") -> None:
        self.prompt_length, self.options, self.mask_id, self.name = len(prompt), options, options.mask_id, name
        if answer is None:
            answer = np.full(options.gen_length, options.mask_id, np.int32)
        self.ids = np.concatenate([prompt, answer]).astype(np.int32)
        self.given = self.ids != options.mask_id  # what guidance hides
        self.rule = Rule(stream, options.temperature, options.cfg_scale, options.remasking, options.suppressed, options.discounted,
                         options.top_k, options.top_p, options.repetition_penalty)
        # How rows are looked at that nothing is drawn for. End tokens that are kept for last are judged like any other.
        self.greedy = Rule(stream, 0.0, options.cfg_scale, "low_confidence", options.suppressed, (), 0, 1.0, options.repetition_penalty)
        self.commit_step = np.full(len(answer), -1, np.int32)
        self.confidence = np.full(len(answer), np.nan)

    @property
    def answer(self) -> IntArray:
        return self.ids[self.prompt_length:]

    def masked(self, begin: int, end: int) -> NDArray[np.intp]:
        """Masked positions in [begin, end)."""
        masks: NDArray[np.intp] = (self.ids[begin:end] == self.mask_id).nonzero()[0] + begin
        return masks

    def has_masks(self, begin: int, end: int) -> bool:
        return bool((self.ids[begin:end] == self.mask_id).any())

    def unconditional(self) -> IntArray:
        """The canvas with everything that was given hidden."""
        return np.where(self.given, np.int32(self.mask_id), self.ids)

    def seen(self) -> IntArray:
        """Distinct tokens of prompt and answer."""
        return np.unique(self.ids[self.ids != self.mask_id]).astype(np.int32)

    def commit(self, positions: NDArray[np.intp], tokens: IntArray, confidence: NDArray[np.float64], step: int) -> None:
        self.ids[positions] = tokens
        inside = (positions >= self.prompt_length) & (tokens != self.mask_id)
        if not inside.all():
            positions, confidence = positions[inside], confidence[inside]
        where = positions - self.prompt_length
        self.commit_step[where] = step
        self.confidence[where] = confidence

    def grow(self, position: int, count: int) -> None:
        """Put masks in before a position of the answer."""
        self.ids = np.insert(self.ids, position, np.full(count, self.mask_id, np.int32))
        self.given = np.insert(self.given, position, np.zeros(count, bool))
        self.commit_step = np.insert(self.commit_step, position - self.prompt_length, np.full(count, -1, np.int32))
        self.confidence = np.insert(self.confidence, position - self.prompt_length, np.full(count, np.nan))

    def revoke(self, positions: NDArray[np.intp]) -> None:
        """Make tokens of the answer masks again."""
        self.ids[positions] = self.mask_id
        self.commit_step[positions - self.prompt_length] = -1
        self.confidence[positions - self.prompt_length] = np.nan

    def written(self, begin: int, end: int) -> NDArray[np.intp]:
        """Positions in [begin, end) that were given as masks and are none now."""
        return np.flatnonzero(~self.given[begin:end] & (self.ids[begin:end] != self.mask_id)) + begin

    def answered(self, ends: Sequence[int]) -> bool:
        """Whether an end token stands in the answer, and no mask before it."""
        masks = self.ids == self.mask_id
        first = int(masks.argmax())
        known = self.ids[self.prompt_length:first if masks[first] else None]
        return any(bool((known == end).any()) for end in ends)

    def fill(self, token: int) -> NDArray[np.intp]:
        """Put a token in the place of every mask, and give the places; it counts as nobody's choice."""
        masks = self.masked(0, len(self.ids))
        self.ids[masks] = token
        return masks
