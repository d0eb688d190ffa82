"""Decoding methods as their sources describe them, each a loop of its own over plain NumPy; they share no code with the package.

`look(ids, places, beside)` gives the logits of a sequence, float64 [rows, vocabulary], the mask token's -inf: of the tokens `ids` at
`places` (default 0, 1, ...), followed by a mask for each position in `beside`, which sees all but that position and is seen by such masks
only. Every loop returns the sequence, the number of passes and the rows that they computed.
"""
from __future__ import annotations

import numpy as np
from scipy.special import rel_entr, softmax


def masks_of(ids, begin, end, mask):
    return [i for i in range(begin, min(end, len(ids))) if ids[i] == mask]


def starting(prompt, length, mask):
    return np.array([*prompt, *[mask] * length], np.int32)


def best_of(logits, where):
    """{position: (its most likely token, the probability)}"""
    p = softmax(logits[where], axis=1)
    return {i: (int(row.argmax()), float(row.max())) for i, row in zip(where, p, strict=True)}


def surest(found):
    return min(found, key=lambda i: (-found[i][1], i))


def credit(look, prompt, length, block, mask, tau, beta, gamma, alpha):
    ids, passes, credits = starting(prompt, length, mask), 0, {}
    for begin in range(len(prompt), len(ids), block):
        while open_ := masks_of(ids, begin, begin + block, mask):
            logits, passes = look(ids), passes + 1
            for i in open_:
                mine = credits.setdefault(i, np.zeros(logits.shape[1]))
                mine *= beta
                token, p = best_of(logits, [i])[i]
                mine[token] += p**gamma
                logits[i] += alpha * np.log1p(mine)
            found = best_of(logits, open_)
            for i in {surest(found), *(i for i in found if found[i][1] >= tau)}:
                ids[i] = found[i][0]
    return ids, passes, passes * len(ids)


def klass(look, prompt, length, block, mask, tau, kappa, history):
    ids, passes, before, calm = starting(prompt, length, mask), 0, {}, {}
    for begin in range(len(prompt), len(ids), block):
        while open_ := masks_of(ids, begin, begin + block, mask):
            logits, passes = look(ids), passes + 1
            now = {i: softmax(logits[i]) for i in open_}
            for i in open_:
                moved = rel_entr(now[i], before[i]).sum() if i in before else np.inf
                calm[i] = calm.get(i, 0) + 1 if moved < kappa else 0
            before = now
            found = best_of(logits, open_)
            settled = [i for i in open_ if found[i][1] > tau and calm[i] >= history]
            for i in settled or [surest(found)]:
                ids[i] = found[i][0]
    return ids, passes, passes * len(ids)


def suffix_window(look, prompt, length, block, mask, tau, span, sigma, scale, seed):
    ids, passes, rows = starting(prompt, length, mask), 0, 0
    for number, begin in enumerate(range(len(prompt), len(ids), block)):
        end = begin + block
        behind = range(end, min(len(ids), end + span))
        draws = np.random.default_rng([seed, number]).random(len(behind))
        stays = [i for i, u in zip(behind, draws, strict=True)
                 if u < scale * np.exp(-0.5 * (sigma * (i - end) / (span - 1)) ** 2) / np.sqrt(2 * np.pi)]
        places = np.array([*range(end), *stays])
        while open_ := masks_of(ids, begin, end, mask):
            found = best_of(look(ids[places], places), open_)  # before `end`, places are rows
            passes, rows = passes + 1, rows + len(places)
            for i in {surest(found), *(i for i in found if found[i][1] >= tau)}:
                ids[i] = found[i][0]
    return ids, passes, rows


def look_ahead(look, prompt, length, block, mask, tau, blocks, add):
    ids, passes, begin = starting(prompt, length, mask), 0, len(prompt)
    while begin < len(ids):
        if not masks_of(ids, begin, begin + block, mask):
            begin += block
            continue
        active = [begin]
        while len(active) < blocks and active[-1] + block < len(ids):
            if block - len(masks_of(ids, active[-1], active[-1] + block, mask)) < add * block:
                break
            active.append(active[-1] + block)
        found = best_of(look(ids), masks_of(ids, begin, active[-1] + block, mask))
        passes += 1
        forced = surest({i: f for i, f in found.items() if i < begin + block})
        for i in {forced, *(i for i in found if found[i][1] >= tau)}:
            ids[i] = found[i][0]
    return ids, passes, passes * len(ids)


def grow(look, prompt, block, mask, end_token, tau, start, step, most, check, enough, sure, doubt):
    ids, passes, rows = starting(prompt, start, mask), 0, 0

    def seen(logits):
        last = [i for i in reversed(range(len(prompt), len(ids))) if logits[i].argmax() == end_token][:check]
        return sum(softmax(logits[i])[end_token] for i in last) / check

    while True:
        room = most - (len(ids) - len(prompt))
        logits, passes, rows = look(ids), passes + 1, rows + len(ids)
        if not room or seen(logits) >= enough:
            break
        ids = np.append(ids, np.full(min(step, room), mask)).astype(np.int32)
    begin = len(prompt)
    while begin < len(ids):
        open_ = masks_of(ids, begin, begin + block, mask)
        if not open_:
            begin += block
            continue
        logits, passes, rows = look(ids), passes + 1, rows + len(ids)
        ends, found = seen(logits), best_of(logits, open_)
        written = {surest(found), *(i for i in found if found[i][1] >= tau)}
        for i in written:
            ids[i] = found[i][0]
        vague = {i: f for i, f in found.items() if i not in written and f[1] < doubt}
        room = min(step - 1, most - (len(ids) - len(prompt)))
        if vague and ends < sure and room > 0:
            ids = np.insert(ids, min(vague, key=lambda i: (vague[i][1], i)), [mask] * room).astype(np.int32)
    return ids, passes, rows


def token_edit(look, prompt, length, block, mask, tau, edit, budget):
    ids, passes = starting(prompt, length, mask), 0
    for begin in range(len(prompt), len(ids), block):
        extra, changed = 0, True
        while (open_ := masks_of(ids, begin, begin + block, mask)) or (changed and extra < budget):
            logits, passes = look(ids), passes + 1
            found, others = best_of(logits, open_) if open_ else {}, [i for i in range(begin, begin + block) if i not in open_]
            old = best_of(logits, others) if others else {}
            writes = {i: found[i][0] for i in found if found[i][1] >= tau or i == surest(found)}
            writes |= {i: token for i, (token, p) in old.items() if token != ids[i] and p > edit}
            for i, token in writes.items():
                ids[i] = token
            changed, extra = bool(writes), extra + (not open_)
    return ids, passes, passes * len(ids)


def remask(look, prompt, length, block, mask, steps, share, count):
    ids, passes = starting(prompt, length, mask), 0
    per_block = min(steps // (length // block), block)  # further steps have nothing to reveal
    first = int(share * per_block)
    for begin in range(len(prompt), len(ids), block):
        kept = {}  # the probability that a token was written with
        quotas = [block // per_block + (i < block % per_block) for i in range(per_block)]
        for i in range(2 * per_block):
            again = first <= i < first + per_block
            if again:
                for j in sorted(kept, key=lambda j: (kept[j], j))[:count]:
                    ids[j] = mask
                    del kept[j]
            quota = count if again else quotas[i if i < first else i - per_block]
            open_ = masks_of(ids, begin, begin + block, mask)
            if not open_ or not quota:
                continue
            found, passes = best_of(look(ids), open_), passes + 1
            for j in sorted(found, key=lambda j: (-found[j][1], j))[:quota]:
                ids[j], kept[j] = found[j]
    return ids, passes, passes * len(ids)


def wino(look, prompt, length, block, mask, draft, verify, windows=None):
    """`windows` has the positions that exist for each block; by default all."""
    ids, passes, rows = starting(prompt, length, mask), 0, 0
    for number, begin in enumerate(range(len(prompt), len(ids), block)):
        last, places = 30, np.arange(len(ids)) if windows is None else windows[number]
        while open_ := masks_of(ids, begin, begin + block, mask):
            written = [i for i in range(begin, begin + block) if i not in open_]
            logits = look(ids[places], places, range(begin, begin + block))  # up to the end of a block, places are rows
            passes, rows = passes + 1, rows + len(places) + (block if written else 0)  # without written tokens nothing is tested
            found = best_of(logits, open_)
            doubts = {i: softmax(logits[len(places) + i - begin])[ids[i]] for i in written}
            most = min(max(int(0.7 * len(open_)), 5), 20)
            accepted = sorted((i for i in found if found[i][1] > draft), key=lambda i: (-found[i][1], i))[:most] or [surest(found)]
            for i in accepted:
                ids[i] = found[i][0]
            if len(accepted) > 1:
                failed = sorted((i for i in doubts if doubts[i] < verify), key=lambda i: (doubts[i], i))
                for i in failed[:last - 1] if len(failed) >= last else failed:
                    ids[i] = mask
            last = len(accepted)
    return ids, passes, rows


def looking(model):
    """`look` of the loops: the engine's logits, its only part in them."""
    mask, vocabulary, backend = model.config.mask_token_id, model.config.vocabulary, model._backend

    def look(ids, places=None, beside=()):
        tokens = np.array([*ids, *[mask] * len(beside)], np.int32)
        more = {} if places is None else {"places": np.array(places, np.int32)}
        if beside:
            more["twins"] = np.array([*[-1] * len(ids), *beside], np.int32)
            if places is not None:
                more["places"] = np.array([*places, *beside], np.int32)
        hidden = backend.hidden(tokens, np.array([len(tokens)], np.int32), np.arange(len(tokens), dtype=np.int32), **more)
        logits = np.empty((len(tokens), vocabulary), np.float32)
        backend.head(hidden, 0, vocabulary, logits)
        logits[:, mask] = -np.inf
        return logits.astype(float)

    return look
