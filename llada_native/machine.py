"""What this machine offers the process: cores, memory, instruction sets."""
from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from . import _native, checks

CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Threads of a new model: LLADA_NUM_THREADS, or the cores this process may use within its cgroup quota.

    Raises
    ------
    ValueError
        LLADA_NUM_THREADS is not a whole number from 1 to 1024.
    """
    wanted = os.environ.get("LLADA_NUM_THREADS")
    if wanted:
        if not wanted.isdecimal():
            raise ValueError(f"LLADA_NUM_THREADS: expected a whole number, found {wanted!r}")
        return checks.threads("LLADA_NUM_THREADS", int(wanted))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cgroup_cores() or cores))


def _cgroup_cores() -> int | None:
    """Whole cores of the cgroup (version 2) quota."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, as far as the system tells."""
    candidates = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                candidates.append(int(line.split()[1]) * 1024)
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            cache = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
            reclaimable = int(cache["inactive_file"]) + int(cache["active_file"])
            candidates.append(int(limit) - int((CGROUP / "memory.current").read_text()) + reclaimable)
    except (OSError, ValueError, KeyError):
        pass
    return min(candidates) if candidates else None


def cpu_info() -> dict[str, Any]:
    """What the processor has and what this package uses of it.

    Returns
    -------
    dict
        ``machine``, ``isas`` (every build of the kernels and whether this processor runs it), ``active_isa`` (what new models use)
        and ``num_threads`` (the default).

    Raises
    ------
    ValueError
        LLADA_ISA or LLADA_NUM_THREADS is wrong.
    """
    return {"machine": platform.machine(), "isas": _native.isas(), "active_isa": _native.active_isa(), "num_threads": default_threads()}
