"""Passes over rows with gaps: requests of tokens, slots and places, and random ones over one cache."""
from __future__ import annotations

import numpy as np

from llada_native import cpu_info

BACKENDS = ("native", "reference", "placeholder")
BUILDS = [*(("native", isa) for isa, supported in cpu_info()["isas"].items() if supported), ("reference", None)]
FAR = 1 << 24  # the first position that there is not


def numbers(values):
    return np.array(values, np.int32)


def hidden(backend, *requests, rows=None):
    """Final-norm output of (tokens, slots, places or None, cache or None) for each request, cut where they meet."""
    tokens, slots = (np.concatenate([numbers(r[i]) for r in requests]) for i in (0, 1))
    places = np.concatenate([numbers(r[1] if r[2] is None else r[2]) for r in requests])
    lengths = numbers([len(r[0]) for r in requests])
    rows = np.arange(len(tokens), dtype=np.int32) if rows is None else numbers(rows)
    out = backend.hidden(tokens, lengths, rows, None, [r[3] for r in requests], slots, places)
    return np.split(out, np.searchsorted(rows, np.cumsum(lengths)[:-1]))


def logits(backend, tokens, slots, places=None, cache=None):
    states, = hidden(backend, (tokens, slots, places, cache))
    out = np.empty((len(tokens), backend.config.vocabulary), np.float32)
    backend.head(states, 0, out.shape[1], out)
    return out


def scattered(rng, length, most=24):
    """Ascending slots: some that a cache of this length holds, maybe some next to it."""
    old = rng.choice(length, rng.integers(0, min(length, most) + 1), replace=False)
    new = length + np.arange(0 if len(old) and rng.random() < 0.4 else rng.integers(1, most))
    return np.concatenate([np.sort(old), new]).astype(np.int32)


class Plan:
    """Random passes over one cache: tokens, slots, places, and sometimes how much the cache keeps."""

    def __init__(self, seed, passes, dtype="float32"):
        rng, length = np.random.default_rng(seed), 0
        self.passes, self.dtype = [], dtype
        for _ in range(passes):
            slots = scattered(rng, length)
            length = max(length, int(slots[-1]) + 1)
            keep = int(rng.integers(length // 2, length + 1)) if rng.random() < 0.2 else None
            self.passes.append((rng.integers(0, 64, len(slots)), slots, np.sort(rng.integers(0, 400, len(slots))), keep))
            length = length if keep is None else keep

    def run(self, backend, *others):
        """Every pass, with other requests around it; its rows of each."""
        cache, found = backend.create_kv_cache(self.dtype), []
        for tokens, slots, places, keep in self.passes:
            found.append(hidden(backend, *others, (tokens, slots, places, cache))[-1])
            if keep is not None:
                cache.truncate(keep)
        return found
