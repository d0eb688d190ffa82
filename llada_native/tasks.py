"""Requests that a caller drives: one round of denoising for any set of them, which join and leave as they like."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .canvas import Canvas, Turn, random_streams
from .denoiser import Denoiser
from .kv_cache import KVCache
from .options import DEFAULT_GEN_LENGTH, GenerationOptions, checked_seed
from .prompts import id_rows, token_rows
from .result import IntArray

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
    temperature, topk, topp : float, int, float
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
        In the order of their commits.
    finish_reason : {None, "stop", "length", "cancelled"}
        An end token is in the finished answer; the canvas is full or max_tokens are reached without one; ``next(None)``.

    Raises
    ------
    TypeError, ValueError
        An argument is unknown, of the wrong type or out of range.
    """

    def __init__(self, id: Any, tokens: Any, max_tokens: int | None = None, temperature: float = 0.0, topk: int | None = None,
                 topp: float | None = None, end_tokens: Sequence[int] | None = None, *, gen_length: int | None = None,
                 block_length: int | None = None, remasking: str = "low_confidence", cfg_scale: float = 0.0, seed: int | None = None,
                 mask_id: int | None = None, **options: Any) -> None:
        self.id = id
        rows = token_rows(id_rows(tokens, "tokens"), None, ANY_VOCABULARY, "tokens")
        if len(rows) != 1 or len(rows[0]) == 0:
            raise ValueError(f"tokens: expected the token ids of one prompt, found {[len(r) for r in rows]} ids")
        self.tokens: IntArray = rows[0]
        if max_tokens is None:
            max_tokens = DEFAULT_GEN_LENGTH if gen_length is None else gen_length
        self.max_tokens = checks.whole_number("max_tokens", max_tokens)
        self.temperature, self.topk, self.topp = temperature, topk, topp
        self.end_tokens = None if end_tokens is None else list(checks.token_ids("end_tokens", end_tokens, ANY_VOCABULARY))
        for name in ("max_steps", "steps"):
            if name in options:
                raise TypeError(f"{name}: a task takes one step a token; use generate for schedules of fewer steps")
        self._given = {**options, "gen_length": self.max_tokens if gen_length is None else gen_length, "block_length": block_length,
                       "temperature": temperature, "cfg_scale": cfg_scale, "remasking": remasking, "mask_id": mask_id,
                       "top_k": topk, "top_p": topp}
        known = GenerationOptions.resolve(self._given, {"mask_id": 0}, ANY_VOCABULARY)  # complains at once; a model completes it
        self.gen_length, self.block_length, self.mask_id = known.gen_length, block_length, mask_id
        self.temperature, self.topk, self.topp = known.temperature, known.top_k, known.top_p
        self.seed = seed
        self._stream = random_streams(checked_seed(seed, 1), 1)[0]
        self._model: LLaDAForCausalLM | None = None
        self._canvas: Canvas | None = None
        self._turns: Iterator[Turn] = iter(())
        self._turn: Turn | None = None
        self._kv_cache: KVCache | None = None
        self.pos = 0
        self.pending_position: int | None = None
        self.pending_token: int | None = None
        self.pending_confidence: float | None = None
        self.revealed_positions: list[int] = []
        self.finish_reason: str | None = None

    # ---- state

    @property
    def sequence(self) -> IntArray:
        """Prompt and canvas as they stand, int32. Masks are `mask_id`, or -1 until a model has said what that is."""
        if self._canvas is not None:
            return self._canvas.ids.copy()
        mask = UNKNOWN_MASK if self.mask_id is None else self.mask_id
        return np.concatenate([self.tokens, np.full(self.gen_length, mask, np.int32)])

    @property
    def answer(self) -> IntArray:
        """The canvas without the prompt."""
        return self.sequence[len(self.tokens):]

    @property
    def block(self) -> int:
        """The block being filled."""
        return self._turn.block if self._turn is not None else 0

    @property
    def block_end(self) -> int:
        """Where that block ends, counted from the start of the prompt; the whole sequence until a model has set the blocks."""
        return self._turn.end if self._turn is not None else len(self.tokens) + self.gen_length

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    # ---- rounds

    def next(self, out_token: int | None) -> None:
        """Commit a token at the pending position. None ends the task.

        Raises
        ------
        ValueError
            No round has left a pending position, or the id is outside the vocabulary.
        """
        if self.finished:
            raise ValueError(f"task {self.id!r} is finished ({self.finish_reason})")
        if out_token is None:
            self._finish("cancelled")
            return
        if self.pending_position is None or self._canvas is None or self._turn is None or self._model is None:
            raise ValueError(f"task {self.id!r} has no pending position: call batch_infer_one_round first")
        token = checks.token_id("out_token", out_token, self._model.config.vocabulary)
        position = np.array([self.pending_position], np.intp)
        self._canvas.commit(position, np.array([token], np.int32), np.array([self.pending_confidence]), self._turn.index)
        self.revealed_positions.append(self.pending_position)
        self.pending_position = self.pending_token = self.pending_confidence = None
        self._turn = next(self._turns, None)
        if self._turn is None or len(self.revealed_positions) >= self.max_tokens:
            self._finish("stop" if np.isin(self._canvas.answer, self.end_tokens or []).any() else "length")

    def _finish(self, reason: str) -> None:
        self.finish_reason, self.pending_position = reason, None

    def join(self, model: LLaDAForCausalLM) -> None:
        """Complete the options from a model. The first round does it; once joined, a task stays with its model.

        Raises
        ------
        ValueError
            A token is outside the vocabulary, the sequence is too long for the model, or the task has another model.
        """
        if self._model is model:
            return
        if self._model is not None:
            raise ValueError(f"task {self.id!r} belongs to another model")
        vocabulary = model.config.vocabulary
        token_rows([self.tokens], None, vocabulary, f"task {self.id!r}: tokens")
        options = GenerationOptions.resolve({**self._given, "max_steps": self.gen_length}, model._defaults, vocabulary)
        model._check_length(len(self.tokens), options.gen_length)
        if self.end_tokens is None:
            self.end_tokens = options.end_ids
        self._model, self.mask_id, self.block_length = model, options.mask_id, options.block_length
        self._canvas = Canvas(self.tokens, options, self._stream)
        self._turns = self._canvas.turns()
        self._turn = next(self._turns)
        if self._kv_cache is not None:
            self._check_cache(self._kv_cache, self.pos)

    # ---- caches

    def bind_kvcache(self, kv_cache: KVCache, pos: int = 0) -> None:
        """Keep keys and values in a cache; take those of the first `pos` positions from it (see `KVCache`).

        Raises
        ------
        ValueError
            The cache was dropped, belongs to another model, or does not hold the task's first `pos` tokens.
        """
        if not isinstance(kv_cache, KVCache):
            raise TypeError(f"kv_cache: expected a KVCache, found {kv_cache!r}")
        pos = checks.whole_number("pos", pos, 0)
        self._check_cache(kv_cache, pos)
        self._kv_cache, self.pos = kv_cache, pos

    def _check_cache(self, cache: KVCache, pos: int) -> None:
        if cache.closed:
            raise ValueError("kv_cache: was dropped")
        if self._model is not None and cache._backend is not self._model._backend:
            raise ValueError("kv_cache: belongs to another model")
        matched = cache.num_matched(self.sequence)
        if pos > matched:
            raise ValueError(f"pos: expected at most {matched}, the leading tokens of task {self.id!r} that the cache holds, found {pos}")

    def release_kvcache(self) -> KVCache | None:
        """Unbind the cache, and give it back."""
        cache, self._kv_cache, self.pos = self._kv_cache, None, 0
        return cache

    def kvcache(self) -> KVCache | None:
        return self._kv_cache

    def _open(self) -> tuple[Canvas, Turn]:
        """The canvas and its turn for a round."""
        assert self._canvas is not None and self._turn is not None  # `join` has run
        canvas = self._canvas
        canvas.start, canvas.cache, canvas.unconditional_cache = self.pos, None, None
        if self._kv_cache is not None:
            self._check_cache(self._kv_cache, self.pos)
            canvas.cache = self._kv_cache.conditional
            if canvas.rule.guided:
                canvas.unconditional_cache = self._kv_cache.unconditional()
        early = canvas.masked(0, self.pos)
        if len(early):
            raise ValueError(f"pos: expected no mask before position {self.pos} of task {self.id!r}, found one at {early[0]}")
        return canvas, self._turn

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
        Addresses; 0 without a cache.
    temperatures, topks, topps : float32, uint32, float32 [nreq]
    block_ends : uint32 [nreq]

    Raises
    ------
    ValueError
        A task does not know its mask token yet: give mask_id, or run a round.
    """

    def __init__(self, tasks: Sequence[InferTask]) -> None:
        self.tasks = list(tasks)
        for task in self.tasks:
            if not isinstance(task, InferTask):
                raise TypeError(f"tasks: expected InferTask objects, found {task!r}")
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


def one_round(model: LLaDAForCausalLM, tasks: Sequence[InferTask]) -> list[int]:
    """The round behind `LLaDAForCausalLM.batch_infer_one_round`: every task is checked before any changes."""
    seen: dict[int, int] = {}
    caches: dict[int, InferTask] = {}
    for i, task in enumerate(tasks):
        if not isinstance(task, InferTask):
            raise TypeError(f"tasks[{i}]: expected an InferTask, found {task!r}")
        if id(task) in seen:
            raise ValueError(f"tasks[{i}]: is also tasks[{seen[id(task)]}]")
        seen[id(task)] = i
        if task.finished:
            raise ValueError(f"tasks[{i}]: task {task.id!r} is finished ({task.finish_reason})")
        cache = task.kvcache()
        if cache is not None and caches.setdefault(id(cache), task) is not task:
            raise ValueError(f"tasks[{i}]: its KV cache is also that of task {caches[id(cache)].id!r}")
    for task in tasks:
        task.join(model)
    opened = [task._open() for task in tasks]
    if not opened:
        return []
    choices = Denoiser(model._backend).choose([canvas for canvas, _ in opened], [Turn(t.index, t.block, t.end, 1) for _, t in opened])
    tokens = []
    for task, (canvas, _), choice in zip(tasks, opened, choices, strict=True):
        task.pending_position, task.pending_token = int(choice.positions[0]), int(choice.tokens[0])
        task.pending_confidence = float(choice.confidence[0])
        if task._kv_cache is not None:
            task._kv_cache.remember(canvas.start, canvas.ids[canvas.start:])
        tokens.append(task.pending_token)
    return tokens
