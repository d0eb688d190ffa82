"""Single linear layers of LLaDA-8B in this package and in llama.cpp, OpenBLAS, PyTorch and OpenVINO, in one process and in turns.

    pip install ".[peers]"    # what is absent is left out
    python benchmarks/peers/linear.py --rows 32 160 512 --rounds 5

Rates are in 10^9 multiplications and additions a second, medians over rounds. What each engine computes is in layers.py: PyTorch's int8
quantises activations dynamically, OpenVINO's int8 and int4 too where the processor has VNNI, as ours do everywhere.

--isa limits ours. To limit the others alike: llama.cpp as compare.py says; OPENBLAS_CORETYPE=Haswell, ONEDNN_MAX_CPU_ISA=AVX2,
ATEN_CPU_CAPABILITY=avx2.
"""
from __future__ import annotations

import argparse
import os
import sys

from turns import ratios, seconds, table

SHAPES = ((4096, 4096), (4096, 12288), (12288, 4096))  # inputs, outputs
RATIOS = (
    ("int4, group 128", ("llama.cpp Q4_0", "llama.cpp Q4_K")),
    ("int4, group 32", ("llama.cpp Q4_0", "llama.cpp Q4_K")),
    ("int8", ("llama.cpp Q8_0",)),
    ("bfloat16", ("llama.cpp BF16",)),
    ("bfloat16_fast", ("llama.cpp BF16",)),
    ("float32", ("OpenBLAS float32",)),
    ("float32", ("torch float32",)),
    ("float32", ("OpenVINO float32",)),
    ("bfloat16_fast", ("torch bfloat16",)),
    ("int8", ("torch int8 fbgemm",)),
    ("int8", ("torch int8 onednn",)),
    ("int8", ("OpenVINO int8",)),
    ("int4, group 128", ("OpenVINO int4, group 128",)),
    ("int4, group 32", ("OpenVINO int4, group 32",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 160, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="", help="build of our kernels; default: the fastest that runs")
    arguments = parser.parse_args()
    if "OPENBLAS_CORETYPE" in os.environ:
        print(f"OpenBLAS is held to OPENBLAS_CORETYPE={os.environ['OPENBLAS_CORETYPE']}", file=sys.stderr)
    os.environ["OPENBLAS_NUM_THREADS"] = str(arguments.threads)  # read when NumPy loads OpenBLAS, so imports follow
    import layers
    import numpy as np

    values = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    rates: dict[str, list[float]] = {}
    columns, absent = [], set()
    for inputs, outputs in SHAPES:
        weight = np.resize(values / 64, (outputs, inputs))
        made = layers.ours(weight, arguments.threads, arguments.isa)
        for peer in layers.PEERS:
            try:
                made |= peer(weight, arguments.threads)
            except ImportError as e:
                absent.add(f"{peer.__name__}: left out ({e})")
        for rows in arguments.rows:
            x = np.resize(values, (rows, inputs))
            columns.append(f"{inputs}x{outputs}, {rows} rows")
            found = seconds({name: layer(x) for name, layer in made.items()}, arguments.rounds)
            for name, duration in found.items():
                rates.setdefault(name, []).append(2e-9 * rows * inputs * outputs / duration)
    print(table("engine", columns, rates), table("ratio", columns, ratios(rates, RATIOS), 2), sep="\n\n")
    print(*sorted(absent), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
