"""Log-likelihood of an answer given a prompt, by Monte Carlo (`get_log_likelihood` of ML-GSAI/LLaDA).

For a target of L tokens, log p(target | prompt) is at least

    E[k] E[S: |S| = k] (L / k) sum(i in S) log p(target[i] | prompt, target without S),    k uniform in 1 .. L

(Nie et al., arXiv:2502.09992). A batch of b samples shares one draw of k, from which the counts of its samples are spread evenly.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from ._sampler import Rule
from .canvas import random_streams
from .denoiser import Denoiser, Request
from .fallback import interruptible
from .options import GenerationOptions, checked_seed
from .prompts import encode_continuations, encode_prompts
from .result import IntArray

if TYPE_CHECKING:
    from .model import LLaDAForCausalLM

MOST_SAMPLES = 16  # of one forward pass, unless the caller says otherwise


def masked_counts(first: int, length: int, samples: int) -> NDArray[np.intp]:
    """How many tokens each sample of a batch masks, in 1 .. length: evenly spaced from `first` on, wrapping around."""
    spread = np.rint(np.linspace(first, first + (samples - 1) * (length / samples), samples)).astype(np.intp)
    return (spread - 1) % length + 1


def log_likelihood(denoiser: Denoiser, prompt: IntArray, target: IntArray, mask_id: int, cfg_scale: float, samples: int, batch_size: int,
                   stream: np.random.BitGenerator) -> float:
    """Mean of the estimate over `samples` samples, in nats."""
    generator, rule, length = np.random.Generator(stream), Rule(stream, cfg_scale=cfg_scale), len(target)
    total = 0.0
    for _ in range(samples // batch_size):
        counts = masked_counts(int(generator.integers(1, length + 1)), length, batch_size)
        hidden = [np.sort(generator.permutation(length)[:k]) for k in counts]
        requests = []
        for shown in (prompt, np.full_like(prompt, mask_id))[:1 + (cfg_scale > 0)]:
            for where in hidden:
                ids = np.concatenate([shown, target])
                ids[len(prompt) + where] = mask_id
                requests.append(Request(ids, len(prompt) + where))
        log_p = denoiser.log_probabilities(requests, rule, np.concatenate([target[where] for where in hidden]))
        weights = np.repeat(length / counts, counts)
        total += float(np.sum(weights * log_p)) / batch_size
    return total / (samples // batch_size)


def score_all(model: LLaDAForCausalLM, prompts: Any, answers: Any, mc_num: int, batch_size: int | None, cfg_scale: float, chat: bool | str,
              seed: Any, mask_id: int | None) -> NDArray[np.float64]:
    """The estimate for every answer; the arguments are those of `LLaDAForCausalLM.score`."""
    model._require_open()
    vocabulary = model.config.vocabulary
    samples = checks.whole_number("mc_num", mc_num)
    batch = int(np.gcd(samples, MOST_SAMPLES)) if batch_size is None else checks.whole_number("batch_size", batch_size)
    if samples % batch:
        raise ValueError(f"mc_num: expected a multiple of batch_size ({batch}), found {samples}")
    scale = checks.scale("cfg_scale", cfg_scale)
    mask = GenerationOptions.resolve({"mask_id": mask_id}, model._defaults, vocabulary).mask_id
    given = encode_prompts(prompts, None, chat, model.tokenizer, vocabulary)
    targets = encode_continuations(answers, model.tokenizer, vocabulary)
    if len(given) == 1:
        given = given * len(targets)
    if len(given) != len(targets):
        raise ValueError(f"answers: expected one for each of {len(given)} prompts, found {len(targets)}")
    for i, (prompt, target) in enumerate(zip(given, targets, strict=True)):
        model._check_length(f"answers[{i}]", len(prompt), len(target), "an answer of")
    streams = random_streams(checked_seed(seed, len(targets)), len(targets))
    denoiser = Denoiser(model._backend)
    with interruptible(model._backend):
        return np.array([log_likelihood(denoiser, prompt, target, mask, scale, samples, batch, stream)
                         for prompt, target, stream in zip(given, targets, streams, strict=True)])
