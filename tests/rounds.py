"""Rounds of tasks that a test drives, and what `generate` gives for the same request."""
from __future__ import annotations

import numpy as np
import oracle

from llada_native import EngineError, InferTask


def prompt_of(seed, length):
    return np.random.default_rng(seed).integers(0, 55, length)


def new_task(name, prompt, gen_length, **options):
    """Options as `generate` names them."""
    renamed = {{"top_k": "topk", "top_p": "topp"}.get(key, key): value for key, value in options.items()}
    return InferTask(name, prompt, gen_length, **renamed)


def take_round(model, task):
    """One round of one task and its commit: (position, token, confidence)."""
    [token] = model.batch_infer_one_round([task])
    chosen = task.pending_position, token, task.pending_confidence
    task.next(token)
    return chosen


def rounds(model, task):
    commits = []
    while not task.finished:
        commits.append(take_round(model, task))
    return commits


def generated(model, prompt, gen_length, **options):
    """The same from `generate`, one token a step, and its result."""
    commits = []

    def note(step):
        commits.extend((int(p), int(t), float(c)) for p, t, c in zip(step.positions[0], step.tokens[0], step.confidence[0], strict=True))

    return commits, model.generate(prompt, max_steps=gen_length, gen_length=gen_length, callback=note, **options)


def surest(logits, masks):
    """Position, token and confidence of the most probable token of the masked positions, from float64 logits."""
    probability = oracle.softmax(logits[masks])
    best = int(probability.max(1).argmax())
    return int(masks[best]), int(probability[best].argmax()), probability[best].max()


def state(task):
    """All that a caller can see of a task and its cache."""
    cache = task.kvcache()
    held = None if cache is None else id(cache) if cache.closed else (id(cache), cache.length, cache.tokens.tolist())
    names = ("block", "block_end", "block_length", "mask_id", "end_tokens", "pos", "pending_position", "pending_token",
             "pending_confidence", "finish_reason")
    return {**{name: getattr(task, name) for name in names},
            "sequence": task.sequence.tolist(), "revealed": list(task.revealed_positions), "cache": held}


class Spy:
    """A backend that keeps the requests of every forward pass, and their logits."""

    def __init__(self, backend):
        self.backend, self.calls = backend, []
        self.fail_head = 0  # this call of `head`, counted from 1, fails

    def hidden(self, tokens, lengths, rows, positions=None, caches=None):
        out = self.backend.hidden(tokens, lengths, rows, positions, caches)
        logits = np.empty((len(out), self.backend.config.vocabulary), np.float32)
        self.backend.head(out, 0, logits.shape[1], logits)
        ends = np.cumsum(lengths)
        self.calls.append([(tokens[end - n:end].copy(), rows[here] - (end - n), logits[here])
                           for end, n in zip(ends, lengths, strict=True) for here in [(rows >= end - n) & (rows < end)]])
        return out

    def head(self, hidden, begin, end, out):
        self.fail_head -= 1
        if self.fail_head == 0:
            raise EngineError("on purpose")
        self.backend.head(hidden, begin, end, out)

    def __getattr__(self, name):
        return getattr(self.backend, name)
