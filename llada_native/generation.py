"""One call of `generate`, `stream` or `infill`: its arguments checked and encoded, then run, or run again on another engine."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks, placeholder
from .backend import Backend
from .canvas import Canvas, random_streams
from .carry import Carry
from .decoding import Denoising
from .denoiser import Denoiser
from .fallback import ENGINE_FAILURES, checked_fallback, interruptible, report
from .live import LiveView
from .method import Method
from .options import CALL_NAMES, GenerationOptions, checked_seed, named
from .progress import print_step
from .prompts import encode_prompts, fixed_answers, infill_texts
from .result import GenerationResult, IntArray, Step
from .streamers import Feed
from .tokenizer import HALF_A_CHARACTER

if TYPE_CHECKING:
    from .model import LLaDAForCausalLM


class Generation:
    """Requests that are ready to run.

    Parameters
    ----------
    model : LLaDAForCausalLM
    prompts : list of int32 [length]
    options : list of GenerationOptions
    answers : list of int32 [gen_length]
        The canvases at the start.
    seed : None, int or sequence of int
        As the caller gave it.
    whole : bool
        The text of an answer is all of it, whatever end tokens it holds.
    carry : Carry, optional
        Keys and values that the one request takes over, and leaves.
    """

    def __init__(self, model: LLaDAForCausalLM, prompts: list[IntArray], options: list[GenerationOptions], answers: list[IntArray],
                 seed: Any, whole: bool = False, carry: Carry | None = None) -> None:
        self.carry = carry
        if carry is not None:
            if not isinstance(carry, Carry):
                raise TypeError(f"carry: expected a Carry, found {carry!r}")
            carry.check(model._backend, len(prompts), options[0])
        self.model, self.prompts, self.options, self.answers, self.whole = model, prompts, options, answers, whole
        self.seed = checked_seed(seed, len(prompts))
        # An answer may be longer than was asked for, where it completes a block.
        self.kept = None if whole or options[0].canvas.grows else options[0].gen_length
        for i, (prompt, o) in enumerate(zip(prompts, options, strict=True)):
            if not o.method.exact and o.mask_id in prompt:
                raise ValueError(f"prompts[{i}]: expected no mask token, for only selector='quota' without another cache, canvas or editor "
                                 "knows what to do with one, as the reference sampler does; infill fills the masks of a text")
            if o.method.editor.verifies and model.config.shifted_logits:
                raise ValueError(f"editor: {o.editor!r} tests a token by a mask in its place, but {model.config.architecture} predicts it "
                                 "in the row before, which has seen it; expected another editor")

    def run(self, verbose: bool, callback: Callable[[Step], object] | None, fallback: str | None, live: bool | LiveView = False,
            streamer: Any = None, drafts: bool = False) -> GenerationResult:
        """Generate, and when the engine fails start again with another backend, if that is wanted."""
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: expected a function of a Step, found {callback!r}")
        checked_fallback(fallback)
        checks.boolean("verbose", verbose)
        checks.boolean("drafts", drafts)
        view = live if isinstance(live, LiveView) else LiveView() if checks.boolean("live", live) else None
        if view is not None and verbose:
            raise ValueError("live: writes to stderr as verbose=True does; expected one of the two")
        feed = None if streamer is None else Feed(streamer)
        if feed is not None and len(self.prompts) > 1:
            raise ValueError(f"streamer: expected one prompt, found {len(self.prompts)}")
        if feed is not None and fallback is not None:
            raise ValueError("streamer: cannot take back what it was told when another backend starts again; expected fallback=None")
        if self.seed is None:
            self.seed = int(np.random.SeedSequence().entropy)  # type: ignore[arg-type]  # a second attempt draws the same numbers
        backend = self.model._backend
        while True:
            run = self.denoising(Denoiser(backend), drafts or (feed is not None and feed.drafts))
            try:
                return self.result(run, self._drive(run, verbose, callback, view, feed))
            except ENGINE_FAILURES as e:
                if fallback is None or backend is not self.model._backend or backend.name == fallback:
                    raise
                report(e, backend.name, fallback, {**self.model._facts(), "prompts": [len(p) for p in self.prompts],
                                                   "gen_length": [o.gen_length for o in self.options],
                                                   "forward passes before": run.n_forward})
                backend = self.model._substitute(fallback)

    def steps(self, drafts: bool) -> Iterator[Step]:
        """The same as an iterator; nothing runs, and nothing of `carry` is taken, before it is asked."""
        checks.boolean("drafts", drafts)

        def steps() -> Iterator[Step]:
            with interruptible(self.model._backend):
                yield from self.denoising(Denoiser(self.model._backend), drafts).steps()

        return steps()

    def _drive(self, run: Denoising, verbose: bool, callback: Callable[[Step], object] | None, view: LiveView | None,
               feed: Feed | None) -> bool:
        """Take all steps. True when a callback ended the run."""
        with interruptible(self.model._backend), ExitStack() as shown:
            if view is not None:
                view.begin(self.model.tokenizer, self._ends, self.kept)
                shown.callback(view.end)
            if feed is not None:
                shown.callback(feed.end)
                feed.begin(self.prompts[0], self._ends, self.kept)
            for step in run.steps():
                if verbose:
                    print_step(step, self.model.tokenizer)
                if view is not None:
                    view(step)
                if feed is not None:
                    feed(step)
                if callback is not None and callback(step):
                    return True
        return False

    def denoising(self, denoiser: Denoiser, drafts: bool = False) -> Denoising:
        """A run of it, from the start."""
        backend = denoiser.backend
        streams = random_streams(self.seed, len(self.prompts))
        canvases = [Canvas(*parts, f"prompt {i}")
                    for i, parts in enumerate(zip(self.prompts, self.options, streams, self.answers, strict=True))]
        run = Denoising(denoiser, canvases, lambda answer: _notice(backend) + self._settled(answer),
                        lambda answer: _notice(backend) + self._text(answer), self.model.max_tokens, drafts,
                        self.carry if backend is self.model._backend else None)
        run.trace.end_ids, run.trace.gen_length, run.trace.method = self._ends, self.kept, self.options[0].title
        run.trace.tokenizer = self.model.tokenizer
        return run

    def _settled(self, answer: IntArray) -> str:
        """The text of an answer up to its first mask or end token."""
        mask_id = self.options[0].mask_id
        answer = answer[:self.kept]
        masks = np.flatnonzero(answer == mask_id)
        if not len(masks) or np.isin(answer[:masks[0]], self._ends).any():
            return self._text(answer)
        return self._text(answer[:masks[0]]).rstrip(HALF_A_CHARACTER)

    def _text(self, answer: IntArray) -> str:
        """The text of an answer up to its first end token, without its masks."""
        answer = answer[:self.kept]
        ends, tokenizer = np.flatnonzero(np.isin(answer, self._ends)), self.model.tokenizer
        answer = answer[:ends[0]] if len(ends) else answer
        return tokenizer.decode(answer[answer != self.options[0].mask_id]) if tokenizer else ""

    @property
    def _ends(self) -> list[int]:
        return [] if self.whole else self.options[0].end_ids

    def result(self, run: Denoising, cancelled: bool) -> GenerationResult:
        """What a run has made, at its end or where it was cancelled."""
        reasons, texts, lengths = [], [], []
        backend = run.denoiser.backend
        for c, course in zip(run.canvases, run.courses, strict=True):
            whole = c.answer[:self.kept]
            ends = np.flatnonzero(np.isin(whole, self._ends))
            answer = whole[:ends[0]] if len(ends) else whole
            reasons.append("cancelled" if cancelled and not course.finished else "stop" if len(ends) else "length")
            lengths.append(int(np.count_nonzero(answer != c.mask_id)))
            texts.append(_notice(backend) + self._text(c.answer))
        return GenerationResult(
            text=texts,
            sequences=[c.ids[:c.prompt_length + len(c.answer[:self.kept])] for c in run.canvases],
            prompt_lengths=[c.prompt_length for c in run.canvases],
            finish_reason=reasons,
            commit_step=[c.commit_step[:self.kept] for c in run.canvases],
            confidence=[c.confidence[:self.kept] for c in run.canvases],
            answer_lengths=lengths,
            n_forward=run.n_forward,
            rows_computed=run.rows_computed,
            timings={"forward": run.seconds_forward, "sample": run.seconds_sample, "total": run.seconds},
            backend=backend.name,
            trace=run.trace,
        )


def prepared(model: LLaDAForCausalLM, prompts: Any, attention_mask: Any, chat: bool | str, seed: Any, constraints: Any,
             options: Mapping[str, Any], carry: Carry | None = None, names: Sequence[str] = CALL_NAMES) -> Generation:
    """Answers to prompts; the arguments are those of `LLaDAForCausalLM.generate`, and `names` what the call has beside options."""
    model._require_open()
    vocabulary = model.config.vocabulary
    resolved = GenerationOptions.resolve(options, model._defaults, vocabulary, names)
    encoded = encode_prompts(prompts, attention_mask, chat, model.tokenizer, vocabulary)
    if constraints is not None and resolved.canvas.grows:
        raise ValueError(f"constraints: with canvas={resolved.canvas!r} positions change while the answer grows, expected none")
    model._check_length("prompts", max(len(ids) for ids in encoded), 1 if resolved.canvas.grows else resolved.gen_length)
    answers = fixed_answers(constraints, len(encoded), resolved, model.tokenizer, vocabulary)
    if model.config.attention_block:  # the last block is whole: its rows see each other
        answers = [_completed(ids, answer, resolved) for ids, answer in zip(encoded, answers, strict=True)]
    if resolved.canvas.grows:  # it begins with what there is room for
        answers = [answer[:model.max_tokens - len(ids)] for ids, answer in zip(encoded, answers, strict=True)]
    return Generation(model, encoded, [resolved] * len(encoded), answers, seed, carry=carry)


def _completed(prompt: IntArray, answer: IntArray, options: GenerationOptions) -> IntArray:
    """An answer with masks up to the end of its last block."""
    missing = -(len(prompt) + len(answer)) % options.block_length
    return np.concatenate([answer, np.full(missing, options.mask_id, np.int32)])


def prepared_infill(model: LLaDAForCausalLM, texts: Any, prompt: Any, chat: bool | str, seed: Any,
                    options: Mapping[str, Any]) -> Generation:
    """Texts whose masks are filled; the arguments are those of `LLaDAForCausalLM.infill`."""
    for name in ("gen_length", "block_length", "max_new_tokens"):
        if name in options:
            raise TypeError(f"{name}: the text to fill is the canvas, and one block")
    model._require_open()
    given = named(options)
    if checks.boolean("early_stop", given.setdefault("early_stop", False)):  # a preset's does not concern a text to fill
        raise ValueError("early_stop: is for answers; in a text to fill, what lies behind an end token matters")
    if Method.resolve({"canvas": given.get("canvas", "blocks")}).canvas.grows:
        raise ValueError("canvas: the text to fill is the canvas, and does not grow")
    steps, vocabulary = given.pop("max_steps", None), model.config.vocabulary
    mask_id = GenerationOptions.resolve({**given, **_lengths(model, 1, None, 1)}, model._defaults, vocabulary).mask_id
    answers = infill_texts(texts, mask_id, model.tokenizer, vocabulary)
    resolved = [GenerationOptions.resolve({**given, **_lengths(model, len(a), steps, int(np.count_nonzero(a == mask_id)))},
                                          model._defaults, vocabulary) for a in answers]
    before = [np.empty(0, np.int32)] if prompt is None else encode_prompts(prompt, None, chat, model.tokenizer, vocabulary)
    if len(before) != 1:
        raise ValueError(f"prompt: expected one for all texts, found {len(before)}")
    for i, answer in enumerate(answers):
        model._check_length(f"texts[{i}]", len(before[0]), len(answer), "a text of")
    return Generation(model, before * len(answers), resolved, answers, seed, whole=True)


def _lengths(model: LLaDAForCausalLM, text: int, steps: int | None, masks: int) -> dict[str, Any]:
    """Of a text to fill: one block and a step a mask, but where a model has blocks of its own."""
    if model.config.attention_block:
        return {"gen_length": text} if steps is None else {"gen_length": text, "max_steps": steps}
    return {"gen_length": text, "block_length": text, "max_steps": masks if steps is None else steps}


def _notice(backend: Backend) -> str:
    return placeholder.NOTICE if backend.name == "placeholder" else ""
