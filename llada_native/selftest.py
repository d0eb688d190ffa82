"""`python -m llada_native selftest`: does this installation work on this machine?"""
from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import __version__, _native
from .library import get_library
from .model import LLaDAForCausalLM
from .tasks import InferTask

PROMPT = "Sort these numbers: 31, 7, 52, 12."
ANSWER = "7, 12, 31, 52"
# Largest difference between float32 and float64 logits, as a part of the largest logit: the contract of the engine.
TOLERANCE = 1e-5

Check = tuple[str, str, Callable[[], str]]


class Failed(Exception):
    """A check found something else than it expected."""


def expect(condition: bool, found: object) -> None:
    if not condition:
        raise Failed(f"found {found}")


def checks(model: LLaDAForCausalLM, demo: bool) -> Iterator[Check]:
    """(section, name, check) in order; a check returns what it saw."""
    canvas = max(2, min(32, model.max_tokens // 2) // 2 * 2)
    ids = np.random.default_rng(0).integers(0, min(256, model.config.vocabulary), min(24, canvas)).astype(np.int32)
    options: dict[str, Any] = {"gen_length": canvas, "block_length": canvas // 2, "max_steps": canvas}

    def answer() -> str:
        found = str(model.generate(PROMPT)) if demo else model.generate(ids, **options).sequences[0].tolist()
        if demo:
            expect(found == ANSWER, repr(found))
        return repr(found)[:60]

    def batch() -> str:
        prompts = [ids, ids[:5], ids[3:]]
        together = model.generate(prompts, **options)
        for prompt, sequence in zip(prompts, together.sequences, strict=True):
            expect(np.array_equal(sequence, model.generate(prompt, **options).sequences[0]), "another answer in a batch than alone")
        return f"{together.n_forward} forward passes, {together.tokens_per_second:.0f} tokens/s"

    def isa(name: str) -> str:
        small = LLaDAForCausalLM(isa=name)
        wanted = LLaDAForCausalLM(backend="reference").forward(ids[:16] % small.config.vocabulary)
        error = float(np.abs(small.forward(ids[:16] % small.config.vocabulary) - wanted).max() / np.abs(wanted).max())
        expect(error < TOLERANCE, f"an error of {error:.1e}")
        return f"largest error {error:.1e} of the largest logit"

    def threads() -> str:
        before, logits = model.num_threads, []
        try:
            for n in (1, 2, 3):
                model.num_threads = n
                logits.append(model.forward(ids))
        finally:
            model.num_threads = before
        expect(all(np.array_equal(logits[0], other) for other in logits), "logits that depend on the number of threads")
        return "1, 2 and 3 threads: the same bits"

    def rounds() -> str:
        task = InferTask("selftest", ids, canvas, block_length=canvas // 2)
        task.bind_kvcache(model.create_kv_cache())
        while not task.finished:
            task.next(model.batch_infer_one_round([task])[0])
        expect(np.array_equal(task.sequence, model.generate(ids, **options).sequences[0]), "other tokens than generate's")
        return f"{canvas} rounds, {task.kvcache()}"

    def library() -> str:
        shared = ctypes.CDLL(get_library())
        shared.lladaVersion.restype = ctypes.c_char_p
        version = shared.lladaVersion().decode()
        expect(version == __version__, f"version {version}, not {__version__}")
        return f"version {version}"

    def sampling() -> str:
        drawn: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "cfg_scale": 0.5, "remasking": "entropy",
                                 "repetition_penalty": 1.1}
        one, two = (model.generate([ids, ids[:9]], seed=5, **options, **drawn) for _ in range(2))
        expect(all(map(np.array_equal, one.sequences, two.sequences)), "another answer for the same seed")
        return ", ".join(f"{k}={v}" for k, v in drawn.items())

    def constraint() -> str:
        fixed = [int(t) for t in ids[:3]]
        found = model.generate(ids, constraints={2: fixed}, **options).sequences[0][len(ids) + 2:len(ids) + 5]
        expect(found.tolist() == fixed, found)
        return "fixed tokens stay"

    def score() -> str:
        likelihood = model.score(ids, [ids[:1]], mc_num=1)[0]
        mask = InferTask("mask", ids, 1)
        model.batch_infer_one_round([mask])
        logits = model.forward(mask.sequence)[-1].astype(np.float64)
        wanted = logits[ids[0]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        expect(abs(likelihood - wanted) < 1e-6 * abs(wanted), f"{likelihood}, not {wanted}")
        return f"{likelihood:.2f} nats"

    yield "basic generation", "an answer", answer
    yield "basic generation", "a batch", batch
    for name, supported in _native.isas().items():
        if supported:
            yield "C++ integration", f"kernels {name}", lambda name=name: isa(name)  # type: ignore[misc]
    yield "C++ integration", "threads", threads
    yield "C++ integration", "tasks and KV cache", rounds
    yield "C++ integration", "shared library", library
    yield "advanced parameters", "sampling", sampling
    yield "advanced parameters", "constraints", constraint
    yield "advanced parameters", "score", score


def run(model: LLaDAForCausalLM, demo: bool, report: Callable[[str, str, bool, str, float], None]) -> bool:
    """Run every check; `report` hears the section, the name, whether it passed, what was seen and the seconds. True when all passed."""
    passed = True
    for section, name, check in checks(model, demo):
        clock = time.perf_counter()
        try:
            seen, good = check(), True
        except Exception as e:  # a self-test reports whatever goes wrong
            seen, good = f"{type(e).__name__}: {e}", False
        report(section, name, good, seen, time.perf_counter() - clock)
        passed = passed and good
    return passed
