"""`llada-native bench`: speed of LLaDA-8B's matrix products on this machine."""
from __future__ import annotations

import argparse
import json
from typing import Any

from . import arguments
from .arguments import EXIT_OK


def add(commands: Any) -> None:
    parser = arguments.add_command(commands, "bench", run, "speed of LLaDA-8B's matrix products on this machine, per dtype",
                                   "llada-native bench", "llada-native bench --rows 32 --num-threads 2 --json")
    parser.add_argument("--rows", type=arguments.count(1, 4096), nargs="+", default=[32, 160], metavar="N",
                        help="rows of a forward (default: 32 160)")
    arguments.add_machine(parser)
    arguments.add_json(parser)


def run(a: argparse.Namespace) -> int:
    from .. import _native, bench

    facts = bench.machine()
    isa, threads = a.isa or facts["isa"], a.num_threads or facts["num_threads"]
    _native.Kernels(isa)  # raises where there are none
    found: list[dict[str, Any]] = []

    def report(line: dict[str, Any]) -> None:
        found.append(line)
        if not a.json:
            group = "" if line["group_size"] is None else f"group {line['group_size']}"
            print(f"{line['dtype']:14}{group:10}{line['rows']:6}{line['gflops']:12.0f}{line['fraction_of_peak']:10.2f}"
                  f"{line['milliseconds']:12.0f}", flush=True)

    if not a.json:
        print(f"matrix products of LLaDA-8B; kernels: {isa}; threads: {threads}; peak: fused multiply-adds of float32\n"
              f"{'dtype':24}{'rows':>6}{'10^9 op/s':>12}{'of peak':>10}{'ms/forward':>12}", flush=True)
    bench.measure(a.rows, threads, isa, report)
    if a.json:
        print(json.dumps({"isa": isa, "num_threads": threads, "results": found}))
    return EXIT_OK
