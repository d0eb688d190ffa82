"""Tile registers are a thread's, which other libraries of the process use too: by a program of its own."""
import subprocess
from pathlib import Path

import pytest
from build_script import declared

from llada_native import _native

ROOT = Path(__file__).parents[1]


def test_a_setup_of_others_comes_back(tmp_path):
    if not _native.isas().get("avx512amx"):
        pytest.skip("no tile registers")
    compiler = ["g++", "-std=c++17", "-O2", "-w", "-pthread", f"-I{ROOT}/src_cpp", f"-I{ROOT}/include"]
    flags = next(library["cflags"] for name, library in declared("x86_64", "linux")["libraries"] if name == "llada_avx512amx")
    kernels, program = tmp_path / "kernels.o", tmp_path / "tiles"
    subprocess.run([*compiler, *flags, "-O1", "-c", ROOT / "src_cpp/kernels/kernels_avx512amx.cpp", "-o", kernels], check=True)
    names = ("base/aligned", "base/team", "ops/convert", "ops/linear", "ops/quantize")
    sources = [ROOT / f"src_cpp/{name}.cpp" for name in names]
    subprocess.run([*compiler, ROOT / "tests/tiles.cpp", *sources, kernels, "-o", program], check=True)
    run = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "")
