"""Requests that a caller drives: one round of denoising for any set of them, which join and leave as they like."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .canvas import Canvas, random_streams
from .course import Commit, Course
from .denoiser import Denoiser
from .kv_cache import KVCache
from .options import DEFAULT_GEN_LENGTH, GenerationOptions, checked_seed, named
from .prompts import id_rows, token_rows
from .result import IntArray
from .selectors import Quota
from .windows import Blocks

if TYPE_CHECKING:
    from .model import LLaDAForCausalLM

ANY_VOCABULARY = 1 << 31  # until a model says otherwise
UNKNOWN_MASK = -1


class InferTask:
    """Parameters and state of one request, decoded one token a round.

    Run to its end through `LLaDAForCausalLM.batch_infer_one_round` and `next`, it gives token for token what ``generate`` gives with
    ``max_steps=gen_length`` and the same options and seed, whatever other tasks shared its rounds.

    Parameters
    ----------
    id : object
        The caller's name for the request.
    tokens : integers [length]
        The prompt.
    max_tokens : int
        Most tokens of the answer, and the default of `gen_length`.
    temperature, topk, topp : float, int, float, optional
        As `GenerationOptions` has them; a topk of None or 0 and a topp of None or 1 are off.
    end_tokens : list of int, optional
        What makes `finish_reason` "stop"; default the model's end tokens.
    gen_length, block_length : int, optional
        The canvas and its blocks.
    remasking, cfg_scale, seed, mask_id, **options
        As in `generate`; a task takes one step a token, so max_steps is not among them.

    Attributes
    ----------
    pending_position : int or None
        Where the last round wants its token, counted from the start of the prompt; `next` commits it.
    pending_token, pending_confidence : int, float
        What the last round chose.
    revealed_positions : list of int
        In the order of their commits; twice where the first commit was the mask token.
    finish_reason : {None, "stop", "length", "cancelled"}
        An end token is in the finished answer; the canvas is full or max_tokens are reached without one; ``next(None)``.
    backend : str or None
        What has computed its rounds.

    Raises
    ------
    TypeError, ValueError
        An argument is unknown, of the wrong type or out of range.
    """

    def __init__(self, id: Any, tokens: Any, max_tokens: int | None = None, temperature: float | None = None, topk: int | None = None,
                 topp: float | None = None, end_tokens: Sequence[int] | None = None, *, gen_length: int | None = None,
                 block_length: int | None = None, remasking: str | None = None, cfg_scale: float | None = None, seed: int | None = None,
                 mask_id: int | None = None, **options: Any) -> None:
        self.id = id
        rows = token_rows(id_rows(tokens, "tokens"), None, ANY_VOCABULARY, "tokens")
        if len(rows) != 1 or len(rows[0]) == 0:
            raise ValueError(f"tokens: expected the token ids of one prompt, found {[len(r) for r in rows]} ids")
        for name in ("max_steps", "steps"):
            if name in options:
                raise TypeError(f"{name}: a task takes one step a token; use generate for schedules of fewer steps")
        stated = {"gen_length": gen_length, "block_length": block_length, "temperature": temperature, "topk": topk, "topp": topp,
                  "cfg_scale": cfg_scale, "remasking": remasking, "mask_id": mask_id}
        self._given = named({**options, **{name: value for name, value in stated.items() if value is not None}})
        length = self._given.get("gen_length")
        if length is not None:
            checks.whole_number("gen_length", length)
        self.max_tokens = checks.whole_number("max_tokens", max_tokens if max_tokens is not None else length or DEFAULT_GEN_LENGTH)
        self._given.setdefault("gen_length", self.max_tokens)
        # Complains at once; a model completes it.
        known = GenerationOptions.resolve(self._given, {"mask_id": 0, "eos_id": 0}, ANY_VOCABULARY)
        for name, found, none in (("canvas", known.canvas, type(known.canvas) is Blocks), ("editor", known.editor, not known.editor.edits)):
            if not none:
                raise ValueError(f"{name}: a task's tokens are committed by its caller, one a round; expected none, found {found!r}")
        if not isinstance(known.selector, Quota):
            by = f" by preset={known.preset!r}" if "selector" not in self._given else ""
            raise ValueError(f"selector: a task takes one token a round, so it has the selector 'quota', found {known.selector!r}{by}")
        self.tokens: IntArray = rows[0]
        self.end_tokens = None if end_tokens is None else list(checks.token_ids("end_tokens", end_tokens, ANY_VOCABULARY))
        self.gen_length, self.block_length, self.mask_id = known.gen_length, self._given.get("block_length"), self._given.get("mask_id")
        self.temperature, self.topk, self.topp = known.temperature, known.top_k, known.top_p
        self.seed = seed
        self.busy = False  # in a round, maybe on another thread
        self.backend: str | None = None
        self._stream = random_streams(checked_seed(seed, 1), 1)[0]
        self._model: LLaDAForCausalLM | None = None
        self._course: Course | None = None
        self._block = 0, len(rows[0]) + self.gen_length  # the one being filled or the last one, and its end
        self._keeps = known.cache.keeps
        self._kv_cache: KVCache | None = None
        self._pos = 0
        self.pending_position: int | None = None
        self.pending_token: int | None = None
        self.pending_confidence: float | None = None
        self.revealed_positions: list[int] = []
        self.finish_reason: str | None = None

    # ---- state

    @property
    def sequence(self) -> IntArray:
        """Prompt and canvas as they stand, int32. Masks are `mask_id`, or -1 until a model has said what that is."""
        if self._course is not None:
            return self._course.canvas.ids.copy()
        mask = UNKNOWN_MASK if self.mask_id is None else self.mask_id
        return np.concatenate([self.tokens, np.full(self.gen_length, mask, np.int32)])

    @property
    def answer(self) -> IntArray:
        """The canvas without the prompt."""
        return self.sequence[len(self.tokens):]

    @property
    def block(self) -> int:
        """The block being filled, or the last one."""
        return self._block[0]

    @property
    def block_end(self) -> int:
        """Where that block ends, counted from the start of the prompt; the whole sequence until a model has set the blocks."""
        return self._block[1]

    @property
    def pos(self) -> int:
        """Positions whose keys and values come from the cache."""
        return self._pos

    @property
    def finished(self) -> bool:
        """Whether no round is left to do."""
        return self.finish_reason is not None

    # ---- rounds

    def next(self, out_token: int | None) -> None:
        """Commit a token at the pending position. None ends the task.

        The mask token may be what a model predicts. As in the reference sampler it then spends a step, and the position stays masked.

        Raises
        ------
        ValueError
            No round has left a pending position, or the id is outside the vocabulary.
        """
        if self.finished:
            raise ValueError(f"task {self.id!r} is finished ({self.finish_reason})")
        self._require_idle()
        if out_token is None:
            self._finish("cancelled")
            return
        if self.pending_position is None or self._course is None or self._model is None:
            raise ValueError(f"task {self.id!r} has no pending position: call batch_infer_one_round first")
        token = checks.token_id("out_token", out_token, self._model.config.vocabulary)
        course, position = self._course, np.array([self.pending_position], np.intp)
        course.commit(Commit(position, np.array([token], np.int32), np.array([self.pending_confidence])))
        self.revealed_positions.append(self.pending_position)
        self._clear_pending()
        if course.finished or len(self.revealed_positions) >= self.max_tokens:
            self._finish("stop" if np.isin(course.canvas.answer, self.end_tokens or []).any() else "length")
        else:
            self._block = course.block, course.end

    def _require_idle(self) -> None:
        if self.busy:
            raise ValueError(f"task {self.id!r} is in a round on another thread")

    def _clear_pending(self) -> None:
        self.pending_position = self.pending_token = self.pending_confidence = None

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        self._clear_pending()
        if self._course is not None:
            self._course.close()

    def _joined(self, model: LLaDAForCausalLM) -> tuple[GenerationOptions, list[int]]:
        """Options completed by a model and end tokens; nothing of the task changes."""
        if self._model not in (None, model):
            raise ValueError(f"task {self.id!r} belongs to another model")
        if model.config.attention_block:
            raise ValueError(f"task {self.id!r}: expected a model whose rows see the whole canvas, found a block-causal one; generate and "
                             "stream run it")
        vocabulary, name = model.config.vocabulary, f"task {self.id!r}: "
        token_rows([self.tokens], None, vocabulary, name + "tokens")
        options = GenerationOptions.resolve({**self._given, "max_steps": self.gen_length}, model._defaults, vocabulary)
        model._check_length(name + "tokens", len(self.tokens), options.gen_length)
        ends = options.end_ids if self.end_tokens is None else self.end_tokens
        return options, list(checks.token_ids(name + "end_tokens", ends, vocabulary))

    def _canvas(self, options: GenerationOptions) -> Canvas:
        return Canvas(self.tokens, options, self._stream, name=f"task {self.id!r}")

    def _join(self, model: LLaDAForCausalLM, course: Course, ends: list[int]) -> None:
        """Begin decoding with a model; a task stays with it."""
        self._model, self._course, self.end_tokens, self.backend = model, course, ends, model.backend
        self.mask_id, self.block_length = course.canvas.options.mask_id, course.canvas.options.block_length
        self._block = course.block, course.end

    # ---- caches

    def bind_kvcache(self, kv_cache: KVCache, pos: int = 0) -> None:
        """Keep keys and values in a cache; take those of the first `pos` positions from it (see `KVCache`).

        Raises
        ------
        TypeError, ValueError
            The cache was dropped, belongs to another model, or does not hold the task's first `pos` tokens; or a round on another thread
            has the task.
        """
        self._require_idle()
        if not isinstance(kv_cache, KVCache):
            raise TypeError(f"kv_cache: expected a KVCache, found {kv_cache!r}")
        if self._keeps:
            raise ValueError(f"kv_cache: task {self.id!r} has caches of its own, by its option cache")
        pos = checks.whole_number("pos", pos, 0)
        if self._model is not None and kv_cache._backend is not self._model._backend:
            raise ValueError("kv_cache: belongs to another model")
        self._check_match(kv_cache.num_matched(self.sequence), pos)
        self._kv_cache, self._pos = kv_cache, pos

    def _check_match(self, matched: int, pos: int) -> None:
        if pos > matched:
            raise ValueError(f"pos: expected at most {matched}, the leading tokens of task {self.id!r} that the cache holds, found {pos}")

    def release_kvcache(self) -> KVCache | None:
        """Unbind the cache, and give it back. Raises ValueError while a round on another thread has the task."""
        self._require_idle()
        cache, self._kv_cache, self._pos = self._kv_cache, None, 0
        return cache

    def kvcache(self) -> KVCache | None:
        """Where its keys and values are kept between rounds; None when none are."""
        return self._kv_cache

    def __reduce__(self) -> Any:
        raise TypeError("an InferTask cannot be copied or pickled: its random stream and its model go on elsewhere")

    def __repr__(self) -> str:
        return (f"InferTask({self.id!r}, {len(self.tokens)} + {self.gen_length} tokens, {len(self.revealed_positions)} revealed, "
                f"finish_reason={self.finish_reason!r})")


class LLaDABatchedTask:
    """Tasks as the flat arrays of the C interface (`include/llada/llada.h`): requests end to end, without padding.

    Parameters
    ----------
    tasks : list of InferTask

    Attributes
    ----------
    tokens : uint32 [ntok]
        Every task's sequence from its `pos` on.
    ntok, nreq : int
    req_lens, req_pos : uint32 [nreq]
        Tokens of each task in `tokens`, and the position of the first of them.
    kv_caches : uintp [nreq]
        Addresses of this process's C++ objects (`KVCache.handle`); 0 without one. `libllada` takes the caches that it made itself.
    temperatures, topks, topps : float32, uint32, float32 [nreq]
    block_ends : uint32 [nreq]

    Raises
    ------
    ValueError
        A task does not know its mask token yet: give mask_id, or run a round.
    """

    def __init__(self, tasks: Sequence[InferTask]) -> None:
        self.tasks = _task_list(tasks)
        for task in self.tasks:
            if task.mask_id is None:
                raise ValueError(f"task {task.id!r}: mask_id is not known before the first round; give it to the task")
        sequences = [t.sequence[t.pos:] for t in self.tasks]
        self.nreq, self.ntok = len(self.tasks), sum(map(len, sequences))
        self.tokens = np.concatenate([np.empty(0, np.uint32), *sequences]).astype(np.uint32)
        self.req_lens, self.req_pos = self._array(map(len, sequences)), self._array(t.pos for t in self.tasks)
        self.kv_caches = self._array((0 if (c := t.kvcache()) is None else c.handle for t in self.tasks), np.uintp)
        self.temperatures = self._array((t.temperature for t in self.tasks), np.float32)
        self.topks, self.topps = self._array(t.topk for t in self.tasks), self._array((t.topp for t in self.tasks), np.float32)
        self.block_ends = self._array(t.block_end for t in self.tasks)

    @staticmethod
    def _array(values: Any, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.array(list(values), dtype)

    def input_args(self) -> tuple[Any, ...]:
        """(tokens, ntok, req_lens, nreq, req_pos, kv_caches, temperatures, topks, topps), the order of ``inferBatchLLaDA``."""
        return (self.tokens, self.ntok, self.req_lens, self.nreq, self.req_pos, self.kv_caches, self.temperatures, self.topks, self.topps)


def _task_list(tasks: Any) -> list[InferTask]:
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise TypeError(f"tasks: expected a list of InferTask, found {tasks!r}")
    for i, task in enumerate(tasks):
        if not isinstance(task, InferTask):
            raise TypeError(f"tasks[{i}]: expected an InferTask, found {task!r}")
    return list(tasks)


class Round:
    """One round of denoising: every task is checked before any changes, and a round that fails leaves all as they were.

    Parameters
    ----------
    model : LLaDAForCausalLM
    tasks : list of InferTask

    Raises
    ------
    TypeError, ValueError
        As `LLaDAForCausalLM.batch_infer_one_round`.
    """

    _turnstile = threading.Lock()  # so that two threads do not enter one task at a time

    def __init__(self, model: LLaDAForCausalLM, tasks: Sequence[InferTask]) -> None:
        self.model, self.tasks = model, _task_list(tasks)
        self.caches: list[KVCache | None] = []  # of the tasks, as the round found them

    def run(self, denoiser: Denoiser) -> list[int]:
        with self._turnstile:
            self.caches = [task.kvcache() for task in self.tasks]
            self._check_company()
            self._set_busy(True)
        try:
            joined = [task._joined(self.model) for task in self.tasks]
            courses = [task._course or Course(task._canvas(options), self.model._backend, ends)
                       for task, (options, ends) in zip(self.tasks, joined, strict=True)]
            for task, cache, course in zip(self.tasks, self.caches, courses, strict=True):
                if cache is not None:
                    self._check_cache(task, cache, course.canvas)
            for task, course, (_, ends) in zip(self.tasks, courses, joined, strict=True):
                if task._course is None:
                    task._join(self.model, course, ends)
            return self._denoise(denoiser, courses) if courses else []
        finally:
            self._set_busy(False)

    def _check_company(self) -> None:
        seen: dict[int, int] = {}
        for i, (task, cache) in enumerate(zip(self.tasks, self.caches, strict=True)):
            if task.finished:
                raise ValueError(f"tasks[{i}]: task {task.id!r} is finished ({task.finish_reason})")
            for name, thing in (("task", task), ("KV cache", cache)):
                if thing is None:
                    continue
                if id(thing) in seen:
                    other = seen[id(thing)]
                    raise ValueError(f"tasks[{i}]: its {name} is also that of tasks[{other}], {self.tasks[other].id!r}")
                if thing.busy:
                    raise ValueError(f"tasks[{i}]: the {name} of {task.id!r} is in a round on another thread")
                seen[id(thing)] = i

    def _set_busy(self, busy: bool) -> None:
        for task in self.tasks:
            task.busy = busy
        for cache in self.caches:
            if cache is not None:
                cache.busy = busy

    def _check_cache(self, task: InferTask, cache: KVCache, canvas: Canvas) -> None:
        pos = task.pos
        if cache._backend is not self.model._backend:
            raise ValueError(f"task {task.id!r}: kv_cache: belongs to another model")
        task._check_match(cache.num_matched(canvas.ids), pos)
        if pos > 0 and canvas.rule.guided:
            task._check_match(cache.parts(True)[1].matched(canvas.unconditional()), pos)
        early = canvas.masked(0, pos)
        if len(early):
            raise ValueError(f"pos: expected no mask before position {pos} of task {task.id!r}, found one at {early[0]}")

    def _denoise(self, denoiser: Denoiser, courses: list[Course]) -> list[int]:
        held = [[] if cache is None else cache.parts(course.canvas.rule.guided) for cache, course in zip(self.caches, courses, strict=True)]
        for task, course, parts in zip(self.tasks, courses, held, strict=True):
            for part in parts:
                part.truncate(len(course.canvas.ids))  # what a longer request left behind would be seen
            course.bind(task.pos, [part.cache for part in parts])
        states = [task._stream.state for task in self.tasks]
        try:
            commits = _proposals(denoiser, courses)
        except BaseException:
            # The keys may be stored and numbers drawn. A repeated round draws the same ones.
            for task, course, parts, state in zip(self.tasks, courses, held, states, strict=True):
                task._stream.state = state
                course.forget()
                for part in parts:
                    if not part.cache.closed:
                        part.truncate(task.pos)
            raise
        for task, course, parts, commit in zip(self.tasks, courses, held, commits, strict=True):
            canvas = course.canvas
            task.pending_position, task.pending_token = int(commit.positions[0]), int(commit.tokens[0])
            task.pending_confidence = float(commit.confidence[0])
            for part, ids in zip(parts, (canvas.ids, canvas.unconditional()), strict=False):
                part.remember(ids)
        return [int(commit.tokens[0]) for commit in commits]


def _proposals(denoiser: Denoiser, courses: Sequence[Course]) -> list[Commit]:
    """What each course would commit; a pass that it doubts is followed by a full one at once."""
    passes = [p for course in courses if (p := course.next_pass()) is not None]
    found = denoiser.predict([course.canvas for course in courses], passes)
    commits = [course.propose(f) for course, f in zip(courses, found, strict=True)]
    doubting = [i for i, commit in enumerate(commits) if commit.doubted]
    if doubting:
        for i in doubting:
            courses[i].commit(commits[i])
        for i, commit in zip(doubting, _proposals(denoiser, [courses[i] for i in doubting]), strict=True):
            commits[i] = commit
    return commits
