"""Which positions a request has while it is decoded: blocks one after the other, part of what follows them, or an answer that grows."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import checks
from .canvas import Canvas
from .denoiser import Prediction

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Blocks:
    """The reference's canvas: all of it is there in every pass, and one block is filled after the other.

    Blocks count from the end of the prompt.
    """

    grows: ClassVar[bool] = False

    def bounds(self, canvas: Canvas, block: int) -> tuple[int, int]:
        """Where a block lies."""
        begin, length = canvas.prompt_length + block * canvas.options.block_length, canvas.options.block_length
        return begin, min(begin + length, len(canvas.ids))

    def count(self, canvas: Canvas) -> int:
        """Blocks of the canvas as it stands."""
        return -(-len(canvas.answer) // canvas.options.block_length)

    def shared(self, masks: int) -> int:
        """Tokens that the steps of a block share which has so many masks."""
        return masks

    def window(self, canvas: Canvas, block: int, end: int) -> Index | None:
        """The positions that exist while a block is filled that ends at `end`, ascending; None: all."""
        return None

    def reach(self, canvas: Canvas, begin: int, end: int) -> int:
        """The end of the last block that is filled beside the one at [begin, end)."""
        return end


@dataclass(frozen=True)
class CausalBlocks(Blocks):
    """The canvas of block-causal models: what follows the block that is being filled is not there.

    Blocks count from the start of the prompt, so the first one may begin with the end of the prompt, and has fewer masks. Its steps
    reveal no fewer tokens for that than those of other blocks.

    It is the canvas of models with an `attention_block`, and of no others.

    Parameters
    ----------
    length : int
        Positions of a block, those of the model's.

    References
    ----------
    LLaDA2.0, arXiv:2512.15745; inclusionAI/LLaDA2.0-mini, `generate`.
    """

    length: int = 32

    def __post_init__(self) -> None:
        checks.whole_number("length", self.length)

    def bounds(self, canvas: Canvas, block: int) -> tuple[int, int]:
        begin = (canvas.prompt_length // self.length + block) * self.length
        return max(begin, canvas.prompt_length), min(begin + self.length, len(canvas.ids))

    def count(self, canvas: Canvas) -> int:
        return -(-len(canvas.ids) // self.length) - canvas.prompt_length // self.length

    def shared(self, masks: int) -> int:
        return self.length

    def window(self, canvas: Canvas, block: int, end: int) -> Index:
        return np.arange(end)


@dataclass(frozen=True)
class SuffixWindow(Blocks):
    """Only some of the masks behind the block are there, the fewer the farther (DPad, arXiv:2508.14148).

    The mask at distance d behind the block, counted from 0, stays with probability scale * n(sigma d / (length - 1)), n the density of the
    standard normal distribution, and none from `length` on. They keep their places. A new draw is made for each block, by `seed` alone.

    Use it for answers much longer than a block: it shortens every pass, refreshes included.

    Parameters
    ----------
    length : int
        Positions.
    sigma, scale : float
        With the defaults, of five masks next to the block four stay, and 64 of 256.
    seed : int
        Of the draws.

    References
    ----------
    Chen et al., arXiv:2508.14148; Crys-Chen/DPad, `llada/sampler.py`.
    """

    length: int = 256
    sigma: float = 4.0
    scale: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole_number("length", self.length, 0)
        checks.scale("sigma", self.sigma)
        checks.scale("scale", self.scale)
        checks.whole_number("seed", self.seed, 0)

    def window(self, canvas: Canvas, block: int, end: int) -> Index:
        behind = np.arange(end, min(len(canvas.ids), end + self.length))
        x = self.sigma * (behind - end) / max(self.length - 1, 1)
        stays = np.random.default_rng([self.seed, block]).random(len(behind)) < self.scale * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
        return np.concatenate([np.arange(end), behind[stays]])


@dataclass(frozen=True)
class LookAhead(Blocks):
    """Blocks that follow are filled too, where the selector is sure, before the present one is full.

    The next block joins once `add` of the last one is written. A pass writes what the selector takes of all of them of its own accord, and
    the surest tokens of the first unfinished block if that is less of it than the schedule's share. The sources also know blocks that wait
    for 95 % of the one before, and write keys late; there is neither here.

    Use it where most passes are nearly idle because a block waits for its last tokens.

    Parameters
    ----------
    blocks : int
        Blocks that are filled at a time, at most.
    add : float
        From 0 to 1.

    References
    ----------
    Qian et al. (d3LLM), arXiv:2601.07568; SGLang, `FullAttnMultiBlock`.
    """

    blocks: int = 2
    add: float = 0.1

    def __post_init__(self) -> None:
        checks.whole_number("blocks", self.blocks)
        checks.within("add", self.add, 0, 1)

    def reach(self, canvas: Canvas, begin: int, end: int) -> int:
        length = end - begin
        for _ in range(self.blocks - 1):
            if end >= len(canvas.ids) or length - len(canvas.masked(end - length, end)) < self.add * length:
                break
            end = min(end + length, len(canvas.ids))
        return end


@dataclass(frozen=True)
class Grow(Blocks):
    """The answer starts short and grows until it has room (DAEDAL, arXiv:2508.00819). ``gen_length="auto"`` is this.

    How sure the model is that the answer ends here: of the answer's positions, from the last one on, those predicted to be the end
    token, `check` at most; the sum of their probabilities over `check`. First, `step` masks are added while this is below `enough`. Later,
    in every pass over the whole sequence, if it is below `sure`, the least sure of the block's masks that the pass leaves, if its
    probability is below `doubt`, becomes `step` masks.

    Parameters
    ----------
    start, step, most : int
        Masks at the start, added at a time, and positions of the answer at most; max_tokens of the model bounds them too.
    check : int
    enough, sure, doubt : float
        From 0 to 1.

    References
    ----------
    Li et al., arXiv:2508.00819; Li-Jinsong/DAEDAL.
    """

    grows: ClassVar[bool] = True

    start: int = 64
    step: int = 8
    most: int = 2048
    check: int = 32
    enough: float = 0.5
    sure: float = 0.9
    doubt: float = 0.1

    def __post_init__(self) -> None:
        checks.whole_number("start", self.start)
        checks.whole_number("step", self.step)
        checks.whole_number("most", self.most, self.start)
        checks.whole_number("check", self.check)
        for name in ("enough", "sure", "doubt"):
            checks.within(name, getattr(self, name), 0, 1)

    def room(self, canvas: Canvas, limit: int) -> int:
        """Positions that can be added where a sequence has `limit` at most."""
        return max(0, min(self.most, limit - canvas.prompt_length) - len(canvas.answer))

    def ending(self, tokens: NDArray[Any], probability: NDArray[np.float64], end_token: int) -> float:
        """How sure the model is that the answer ends here, from its predictions for all of it."""
        return float(probability[tokens == end_token][-self.check:].sum()) / self.check

    def doubtful(self, found: Prediction, chosen: Index, begin: int, end: int) -> int | None:
        """The position of the least sure mask of [begin, end) that is not written."""
        left = np.setdiff1d(np.arange(len(found.positions)), chosen)
        left = left[(found.positions[left] >= begin) & (found.positions[left] < end) & (found.probability[left] < self.doubt)]
        return int(found.positions[left[found.probability[left].argmin()]]) if len(left) else None


NAMES: dict[str, type[Blocks]] = {"blocks": Blocks, "causal_blocks": CausalBlocks, "suffix_window": SuffixWindow, "look_ahead": LookAhead,
                                  "grow": Grow}
