"""Decoding rules as their definitions read, one row after the other; they share no code with the package.

A rule takes lists and returns the indices of the rows to reveal, surest first. `least` rows are revealed at least.
"""
from __future__ import annotations

from fractions import Fraction


def surest(score, rows=None):
    """Indices by falling score, the lowest first on ties, by selection."""
    left = list(range(len(score)) if rows is None else sorted(rows))
    out = []
    while left:
        best = left[0]
        for i in left:
            if score[i] > score[best]:
                best = i
        out.append(best)
        left.remove(best)
    return out


def with_least(score, chosen, least):
    """The chosen rows and the `least` best, best first."""
    return surest(score, set(chosen) | set(surest(score)[:least]))


def quota(rows, least):
    return surest(rows.confidence)[:least]


def threshold(rows, least, tau=0.9, strict=False, slack=None):
    bar = tau
    if slack is not None and rows.probability:
        bar = min(tau, max(rows.probability) - slack)
    chosen = []
    for i, p in enumerate(rows.probability):
        if (p > bar) if strict else (p >= bar):
            chosen.append(i)
    return with_least(rows.probability, chosen, least)


def factor(rows, least, f=1.0):
    order = surest(rows.probability)
    most = 0
    for n in range(1, len(order) + 1):
        if (n + 1) * (1 - rows.probability[order[n - 1]]) < f:
            most = n
    return order[:max(most, least)]


def hierarchy(rows, least, tau=0.9, low=0.4):
    runs = []
    for i, position in enumerate(rows.positions):
        if i and position == rows.positions[i - 1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    chosen = [i for i, p in enumerate(rows.probability) if p > tau]
    for run in runs:
        top = surest(rows.probability, run)[0]
        if rows.probability[top] > low:
            chosen.append(top)
    return with_least(rows.probability, chosen, least)


def entropy_bound(rows, least, gamma=0.05):
    order = surest([-h for h in rows.entropy])
    most = 0
    for n in range(1, len(order) + 1):
        first = [Fraction(rows.entropy[i]) for i in order[:n]]  # exact: `sum - max` rounds otherwise
        if sum(first) - max(first) <= Fraction(gamma):
            most = n
    return order[:max(most, least)]


def entropy_threshold(rows, least, h=0.4):
    score = [-entropy for entropy in rows.entropy]
    return with_least(score, [i for i, entropy in enumerate(rows.entropy) if entropy < h], least)


def margin(rows, least, tau=0.8):
    lead = [p - second for p, second in zip(rows.probability, rows.second, strict=True)]
    return with_least(lead, [i for i, x in enumerate(lead) if x >= tau], least)


def local_leap(rows, least, anchor=0.9, tau=0.75, radius=4):
    chosen = set()
    for i, p in enumerate(rows.probability):
        if p >= anchor:
            chosen.add(i)
            for j, q in enumerate(rows.probability):
                if abs(rows.positions[j] - rows.positions[i]) <= radius and q >= tau:
                    chosen.add(j)
    return with_least(rows.probability, chosen, least)
