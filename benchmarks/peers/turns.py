"""Engines in turns, and Markdown tables of what was measured. Imports nothing that starts threads: see linear.py."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

# Seconds: the idle threads of OpenMP and of a BLAS spin for tens of milliseconds, on the cores of whoever comes next.
PAUSE = 0.05
WARMUP = 0.02


def seconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each engine's calls, one a round, its own threads awake and those of the others asleep."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            end = time.perf_counter() + WARMUP
            call()
            while time.perf_counter() < end:
                call()
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in samples.items()}


def table(title: str, columns: Sequence[str], lines: Mapping[str, Sequence[float]], digits: int = 0) -> str:
    head = f"| {title} | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns)
    return "\n".join([head, *(f"| {name} | " + " | ".join(f"{x:.{digits}f}" for x in found) + " |" for name, found in lines.items())])


def ratios(rates: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, list[float]]:
    """Ours over the best of the named peers that were measured; pairs without any are left out."""
    found = {}
    for ours, peers in pairs:
        present = [peer for peer in peers if peer in rates]
        if present:
            name = present[0] if len(present) == 1 else f"the better of {' and '.join(present)}"
            found[f"{ours} / {name}"] = [x / max(y) for x, *y in zip(rates[ours], *(rates[peer] for peer in present), strict=True)]
    return found
