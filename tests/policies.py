"""Cache policies, and a loop that keeps keys and values by hand."""
import numpy as np
from scipy.special import softmax

from llada_native.caching import Delayed, Dual, Prefix

POLICIES = [
    Prefix(), Prefix(refresh_every=3), Prefix(doubt=0.5),
    Dual(), Dual(refresh_every=2), Dual(vicinity=(3, 5)), Dual(warmup=3), Dual(doubt=0.5),
    Delayed(), Delayed(refresh_every=4), Delayed(doubt=0.9), Delayed(warmup=2, doubt=0.3),
    Prefix(prompt_every=5, refresh_every=3), Delayed(prompt_every=100), Delayed(prompt_every=7, refresh_every=3),
    Dual(prompt_every=9), Prefix(prompt_every=5, doubt=0.5),
]
WINDOWED = [Prefix(), Dual(), Dual(vicinity=(2, 9)), Delayed(), Delayed(prompt_every=20), Dual(prompt_every=6, refresh_every=2)]


def by_hand(model, prompt, gen_length, block_length, tau, policy, mask, windows=None, shifted=False):
    """Threshold decoding of one prompt as Fast-dLLM and dKV-Cache-Decode describe it: ids, forward passes, rows.

    `windows` has the positions that exist for each block; by default all. `shifted`: the row before a mask predicts it.
    """
    backend, vocabulary = model._backend, model.config.vocabulary
    ids = np.concatenate([prompt, np.full(gen_length, mask)]).astype(np.int32)
    everything, cache = np.arange(len(ids)), backend.create_kv_cache()
    stored = np.full(len(ids), -1)  # the token that a position's keys were computed from
    passes = rows_computed = since_full = 0
    prompt_pass, doubted = None, False
    for block, begin in enumerate(range(len(prompt), len(ids), block_length)):
        end, fresh = begin + block_length, True
        if windows is not None:
            everything = windows[block]
            if block:
                cache.truncate(begin)  # what windows have in common: all before the new block
                stored[begin:] = -1
        while (ids[begin:end] == mask).any():
            masks = np.arange(begin, end)[ids[begin:end] == mask]
            full = fresh or passes < policy.warmup or bool(policy.refresh_every and since_full + 1 >= policy.refresh_every)
            if full:
                keep = prompt_pass is not None and passes - prompt_pass < policy.prompt_every and not doubted
                rows = [i for i in everything if i >= len(prompt) or not keep]
                prompt_pass = prompt_pass if keep else passes
            elif isinstance(policy, Prefix):
                rows = [i for i in everything if i >= begin]
            elif isinstance(policy, Dual):
                rows = [i for i in everything if begin - policy.vicinity[0] <= i < end + policy.vicinity[1]]
            else:
                rows = sorted({*masks} | {i for i in everything if stored[i] != ids[i]})
            before = masks - 1 if shifted else masks
            rows = sorted({*rows, *before})
            if not full and rows[0] == 0:
                prompt_pass = passes
            slots = np.array([list(everything).index(i) for i in rows], np.int32)
            rows = np.array(rows)
            wanted = np.array([list(rows).index(m) for m in before], np.int32)
            hidden = backend.hidden(ids[rows], np.array([len(rows)], np.int32), wanted, caches=[cache], slots=slots,
                                    places=rows.astype(np.int32))
            logits = np.empty((len(masks), vocabulary), np.float32)
            backend.head(hidden, 0, vocabulary, logits)
            stored[rows] = ids[rows]
            passes, rows_computed, since_full = passes + 1, rows_computed + len(rows), 0 if full else since_full + 1
            logits[:, mask] = -np.inf
            probability = softmax(logits.astype(float), axis=1)
            best = probability.max(1)
            doubted = len(rows) < len(everything) and policy.doubt is not None and best.max() < policy.doubt
            if doubted:
                fresh = True
                continue
            fresh = False
            sure = best >= tau
            sure[best.argmax()] = True
            ids[masks[sure]] = probability.argmax(1)[sure]
    return ids, passes, rows_computed
