"""What a generation gives back, step by step and at its end."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .trace import Trace

IntArray = NDArray[np.int32]
Decode = Callable[[IntArray], str]


@dataclass(frozen=True)
class Step:
    """One denoising step: one forward pass, as its `trace` has it. Lists have one entry a prompt.

    Attributes
    ----------
    index, n_steps : int
        Position in the schedule of max_steps steps; steps that reveal nothing are skipped, and what a selector or an editor does beyond
        the schedule has the indices of its steps.
    block, n_blocks : int
    seconds : float
        Since the start.
    forward : int
        The forward pass, from 0.
    trace : Trace
        Of the whole run; it goes on growing with it.
    drafts : list of int32 [gen_length] or None
        Of `stream(drafts=True)`: every answer, as long as in `canvas`, with what this pass would have put in the place of the masks it
        looked at.
    """

    index: int
    n_steps: int
    block: int
    n_blocks: int
    seconds: float
    forward: int
    trace: Trace = field(repr=False, compare=False)
    drafts: list[IntArray] | None = field(repr=False, compare=False)
    _settled: Decode = field(repr=False, compare=False)
    _decode: Decode = field(repr=False, compare=False)

    @property
    def positions(self) -> list[IntArray]:
        """Where tokens were written, counted from the start of the prompt to where they stand in `canvas`, int32: those revealed, surest
        first, then those that an editor replaced, then those that it took back. What `early_stop` fills is not among them."""
        return [self._written(r)[0].astype(np.int32) for r in range(len(self.trace.canvases))]

    @property
    def tokens(self) -> list[IntArray]:
        """What was written there; the mask token where an editor took one back."""
        return [self._written(r)[1] for r in range(len(self.trace.canvases))]

    @property
    def confidence(self) -> list[NDArray[np.float64]]:
        """Of those tokens, float64; NaN where one was taken back."""
        return [self._written(r)[2] for r in range(len(self.trace.canvases))]

    @property
    def canvas(self) -> list[IntArray]:
        """Every answer as it stood, masks included, int32 [gen_length], of block-causal models up to the end of its last block."""
        return [self.trace.answer(r, self.forward) for r in range(len(self.trace.canvases))]

    @property
    def masks_left(self) -> list[int]:
        """Masks in the whole canvas after this step."""
        return [int(np.count_nonzero(self.trace.canvas(r, self.forward) == self.trace.mask_id)) for r in range(len(self.trace.canvases))]

    @property
    def seconds_left(self) -> float:
        """An estimate of what remains, by the masks that are left."""
        left = sum(self.masks_left)
        done = sum(int(np.count_nonzero(c == self.trace.mask_id)) for c in self.trace.canvases) + self.trace.added(self.forward) - left
        return self.seconds * left / done if done > 0 else 0.0

    @property
    def text(self) -> list[str]:
        """The settled beginning of every answer: up to its first mask or end token and, with an editor, its present block."""
        return self._texts(self.forward)

    @property
    def new_text(self) -> list[str]:
        """What this step added to `text`. The pieces of all steps make up the text of the result, where masks are left in it up to the
        first of them."""
        return [now[len(before):] for before, now in zip(self._texts(self.forward - 1), self.text, strict=True)]

    @property
    def draft_text(self) -> list[str] | None:
        """`drafts` as text."""
        return None if self.drafts is None else [self._decode(draft) for draft in self.drafts]

    def _written(self, request: int) -> tuple[NDArray[np.intp], IntArray, NDArray[np.float64]]:
        from .trace import Growth

        positions, tokens, confidence = self.trace.written(request, self.forward)
        for of, event in self.trace.forwards[self.forward].events:
            if of == request and isinstance(event, Growth):  # which comes after the writes of its pass
                positions = event.moved(positions)
        return positions, tokens, confidence

    def _texts(self, forward: int) -> list[str]:
        return [self._settled(self.trace.settled(r, forward)) if forward >= 0 else "" for r in range(len(self.trace.canvases))]


@dataclass(frozen=True, repr=False, eq=False)
class GenerationResult:
    """Generated answers. Lists have one entry a prompt; ``str(result)`` is the text.

    Attributes
    ----------
    text : list of str
        Answers, cut at the first end token, without special tokens. Empty strings where the model has no tokenizer.
    sequences : list of int32 [prompt + gen_length]
        Prompt and whole canvas, as the reference sampler returns them; with gen_length="auto", of the length that it grew to.
    prompt_lengths : list of int
    finish_reason : list of {"stop", "length", "cancelled"}
        An end token was generated; the request is done without one; a callback ended the run before it was done.
    commit_step : list of int32 [gen_length]
        The step that wrote each position, -1 where a mask remains, `early_stop` has filled one, or the token was given.
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
    backend : {"native", "reference", "placeholder"}
    trace : Trace
        What every forward pass computed and wrote.
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
    trace: Trace

    @property
    def tokens_per_second(self) -> float:
        """Tokens before the first end token, of all answers, per second."""
        return sum(self.answer_lengths) / self.timings["total"] if self.timings["total"] > 0 else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Tokens before the first end token, of all answers, for each forward pass."""
        return sum(self.answer_lengths) / self.n_forward if self.n_forward else 0.0

    @property
    def rows_per_token(self) -> float:
        """Rows computed for each token before the first end token: the cost of decoding, whatever the machine."""
        tokens = sum(self.answer_lengths)
        return self.rows_computed / tokens if tokens else float("inf")

    def save_html(self, path: str | PathLike[str], *, name: str = "", requests: Sequence[int] | None = None, drafts: bool = True) -> None:
        """Write a page on which the run can be watched again: one file, which needs no network.

        `llada_native.save_html` puts two runs side by side, and makes pages of saved traces.

        Parameters
        ----------
        path : path
        name : str
            Of the run, shown above its method.
        requests : sequence of int, optional
            Which prompts; default all.
        drafts : bool
            Give what was predicted and not written as well, where ``generate(..., drafts=True)`` has kept it.
        """
        from .replay import save_html

        save_html(self, path, names=[name], requests=requests, drafts=drafts)

    def plot(self, axes: Any = None, request: int = 0) -> Any:
        """When tokens were written, how sure they were, and what each pass computed: the three plots of `llada_native.plots`, matplotlib's.

        Parameters
        ----------
        axes : sequence of 3 matplotlib Axes, optional
            Where to draw; default a new figure.
        request : int
            Which prompt.

        Returns
        -------
        array of 3 Axes

        Raises
        ------
        MissingPackageError
            There is no matplotlib: pip install 'llada-native[viz]'.
        """
        from .plots import overview

        return overview(self.trace, request, axes)

    def _repr_html_(self) -> str:
        """The page in a frame, for notebooks."""
        from .replay import in_notebook

        return in_notebook(self)

    def __str__(self) -> str:
        return "\n".join(self.text)

    def __repr__(self) -> str:
        return (f"GenerationResult(text={self.text!r}, finish_reason={self.finish_reason!r}, n_forward={self.n_forward}, "
                f"tokens_per_second={self.tokens_per_second:.1f}, backend={self.backend!r})")
