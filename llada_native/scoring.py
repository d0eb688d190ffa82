"""Log-likelihood of an answer given a prompt, by Monte Carlo (`get_log_likelihood` of ML-GSAI/LLaDA).

For a target of L tokens, log p(target | prompt) is at least

    E[k] E[S: |S| = k] (L / k) sum(i in S) log p(target[i] | prompt, target without S),    k uniform in 1 .. L

(Nie et al., arXiv:2502.09992). A batch of b samples shares one draw of k, from which the counts of its samples are spread evenly.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._sampler import Rule
from .denoiser import Denoiser, Request
from .result import IntArray


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
