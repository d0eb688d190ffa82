"""What is answered, in the shapes of OpenAI's interface; what that has no name for stands under "llada" and "draft"."""
from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .. import __version__
from ..result import IntArray
from ..scheduler import Answer, Job, Progress, held_back
from ..tokenizer import Tokenizer
from .fields import Asked

LEAST_LOGPROB = -9999.0  # of a confidence of 0
GUESSED, WRITTEN, SETTLED, BEHIND = range(4)  # the state of a position in a draft
DONE = b"data: [DONE]\n\n"


class Pieces:
    """Tokens as text, one by one."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self.of = lru_cache(maxsize=1 << 16)(self._of)

    def _of(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False) if self._tokenizer else ""

    def length(self, token: int) -> int:
        """Characters of an answer that it takes: a special token has a text of its own, and none there."""
        return len(self._tokenizer.decode([token])) if self._tokenizer else 0


class Shapes:
    """The answers to one request.

    Parameters
    ----------
    asked : Asked
    model : str
        Its name.
    pieces : Pieces
    ends : sequence of int
        The tokens that end an answer.
    """

    def __init__(self, asked: Asked, model: str, pieces: Pieces, ends: Sequence[int]) -> None:
        self.asked, self.pieces, self.ends = asked, pieces, frozenset(ends)
        kind = ("chat.completion", "chatcmpl") if asked.chat else ("text_completion", "cmpl")
        self.head = {"id": f"{kind[1]}-{secrets.token_hex(12)}", "object": kind[0], "created": int(time.time()), "model": model,
                     "system_fingerprint": f"llada-native-{__version__}"}
        self._sent = [0] * len(asked.prompts) * asked.n  # characters
        self._step = -1

    def whole(self, job: Job, replay: str | None) -> dict[str, Any]:
        choices = []
        for i, answer in enumerate(job.answers):
            said: dict[str, Any] = ({"message": {"role": "assistant", "content": answer.text, "refusal": None}} if self.asked.chat else
                                    {"text": answer.text})
            choices.append({"index": i, **said, "logprobs": self._logprobs(answer), "finish_reason": answer.finish_reason})
        return {**self.head, "choices": choices, "usage": self._usage(job), "llada": _measures(job, replay)}

    # ---- in pieces

    def first(self) -> Iterator[bytes]:
        """Who speaks."""
        if self.asked.chat:
            for i in range(len(self._sent)):
                yield self._event([{"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}])

    def more(self, progress: Progress) -> Iterator[bytes]:
        """What has been settled since, but for what may be the beginning of a stop string, and drafts."""
        if progress.step is None or progress.step.forward == self._step:
            return
        self._step = progress.step.forward
        for i, text in enumerate(progress.texts):
            piece = self._piece(i, text[:len(text) - held_back(text, self.asked.stop)])
            draft = self._draft(progress.canvases[i], progress.drafts[i], progress) if progress.drafts else None
            if piece or draft:
                yield self._event([{"index": i, **self._said(piece), "logprobs": None, "finish_reason": None,
                                    **({"draft": draft} if draft else {})}])

    def last(self, job: Job, replay: str | None) -> Iterator[bytes]:
        """What is left, and why it ends."""
        for i, answer in enumerate(job.answers):
            yield self._event([{"index": i, **self._said(self._piece(i, answer.text)), "logprobs": self._logprobs(answer),
                                "finish_reason": answer.finish_reason}], {"llada": _measures(job, replay)})
        if self.asked.usage:
            yield self._event([], {"usage": self._usage(job)})
        yield DONE

    def _piece(self, index: int, text: str) -> str:
        piece = text[self._sent[index]:]
        self._sent[index] += len(piece)
        return piece

    def _said(self, piece: str) -> dict[str, Any]:
        return {"delta": {"content": piece} if piece else {}} if self.asked.chat else {"text": piece}

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        kind = "chat.completion.chunk" if self.asked.chat else "text_completion"
        return event({**self.head, "object": kind, "choices": choices, **(more or {})})

    def _draft(self, canvas: IntArray, draft: IntArray, progress: Progress) -> dict[str, Any]:
        """The canvas position by position: [text, state]."""
        step = progress.step
        assert step is not None
        mask_id, ends = step.trace.mask_id, self.ends
        masks = np.flatnonzero(canvas == mask_id)
        settled = int(masks[0]) if len(masks) else len(canvas)
        end = next(iter(np.flatnonzero(np.isin(canvas, list(ends)))), len(canvas))
        cells = []
        for i, (token, guess) in enumerate(zip(canvas.tolist(), draft.tolist(), strict=True)):
            if token == mask_id:
                cells.append(["" if guess == mask_id or guess in ends else self.pieces.of(guess), BEHIND if i > end else GUESSED])
            else:
                cells.append(["" if token in ends else self.pieces.of(token), BEHIND if i >= end else SETTLED if i < settled else WRITTEN])
        return {"forward": step.forward, "step": step.index, "steps": step.n_steps, "seconds": round(step.seconds, 4), "cells": cells}

    def _usage(self, job: Job) -> dict[str, int]:
        prompt = sum(map(len, job.generation.prompts[::self.asked.n]))
        answers = sum(len(answer.tokens) for answer in job.answers)
        return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}

    def _logprobs(self, answer: Answer) -> dict[str, Any] | None:
        """Of the tokens, by their confidences when they were written."""
        if not self.asked.logprobs:
            return None
        texts = [self.pieces.of(int(token)) for token in answer.tokens]
        values = [math.log(c) if c > 0 else LEAST_LOGPROB for c in answer.confidence.tolist()]
        if self.asked.chat:
            return {"content": [{"token": text, "logprob": value, "bytes": None, "top_logprobs": []}
                                for text, value in zip(texts, values, strict=True)], "refusal": None}
        offsets = np.cumsum([0, *map(self.pieces.length, answer.tokens)])[:-1].tolist()
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


def _measures(job: Job, replay: str | None) -> dict[str, Any]:
    result = job.result
    assert result is not None
    tokens = sum(len(answer.tokens) for answer in job.answers)
    return {"forward_passes": result.n_forward, "rows_computed": result.rows_computed,
            "tokens_per_forward": round(tokens / result.n_forward, 3) if result.n_forward else 0.0,
            "seconds": round(result.timings["total"], 4), **({} if replay is None else {"replay": replay})}
