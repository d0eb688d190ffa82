"""The aarch64 build: cross-compiled with what setup.py says, and run under QEMU."""
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import build_script
import pytest
from build_script import ROOT, declared, objects

from llada_native.model import DEMO

COMPILER, SYMBOLS, EMULATOR = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-nm", "qemu-aarch64-static"
DISASSEMBLER = "aarch64-linux-gnu-objdump"
MISSING = [tool for tool in (COMPILER, SYMBOLS, DISASSEMBLER, EMULATOR) if shutil.which(tool) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}")]


def run(*command, **environment):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


compiled = partial(build_script.compiled, COMPILER)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(objects of the libraries, libllada.so)"""
    folder, arguments = tmp_path_factory.mktemp("aarch64"), declared("aarch64", LLADA_CXXFLAGS="-Werror")
    *libraries, interface = objects(COMPILER, arguments, folder, "-fPIC")
    shared = folder / "libllada.so"
    compiled("-shared", interface, *libraries, *arguments["ext_modules"][-1].extra_link_args, "-Wl,--no-undefined", "-o", shared)
    return libraries, shared


@pytest.fixture(scope="module")
def driver(built):
    libraries, shared = built
    program = shared.parent / "kernels"
    compiled("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Iinclude", "-Isrc_cpp", "-static",
             *sorted((ROOT / "tests" / "cross").glob("*.cpp")), *libraries, "-o", program)
    return program


@pytest.mark.parametrize("isa", ["neon", "neondot"])
def test_kernels(driver, isa):
    done = run(EMULATOR, driver, isa)
    assert done.returncode == 0 and done.stdout.count("compared") == 18, done.stdout


def test_a_processor_without_dot_products(driver):
    done = run(EMULATOR, "-cpu", "cortex-a53", driver, "neondot")
    assert (done.returncode, done.stdout) == (2, "instruction set 'neondot': this processor lacks it; it can run: scalar, neon\n")


def test_kernel_objects_export_one_symbol(built):
    """As test_package.py asks it of this machine's builds."""
    kernels = [path for path in built[0] if "kernels_" in path.name]
    assert len(kernels) == 3
    for path in kernels:
        symbols = [line.split() for line in run(SYMBOLS, path).stdout.splitlines()]
        defined = [name for *_, kind, name in symbols if kind.lower() == "w" or (kind.isupper() and kind != "U")]
        assert len(defined) == 1 and "Kernels" in defined[0], defined


@pytest.mark.parametrize("isa", ["neon", "neondot"])
def test_sums_of_float_products_stay_in_registers(built, isa):
    """No processor shows here how slow it is to store them at every depth; the code does."""
    path, = (path for path in built[0] if f"kernels_{isa}." in path.name)
    functions = re.split(r"\n[0-9a-f]+ <(.*)>:\n", run(DISASSEMBLER, "-d", "--no-show-raw-insn", path).stdout)
    tiles = {name: code for name, code in zip(functions[1::2], functions[2::2], strict=True) if "gemm_tile" in name and "Float" in name}
    assert tiles
    for name, code in tiles.items():
        products = len(re.findall(r"\tfmla\t", code))
        stacked = len(re.findall(r"\t(?:str|stp|ldr|ldp)\tq.*\[sp", code))
        assert products >= 4 and stacked * 2 < products, f"{name}: {stacked} vectors moved to and from the stack beside {products} products"


@pytest.mark.parametrize("isa", ["scalar", "neon", "neondot"])
def test_the_c_program_answers_as_this_machine_does(built, demo, isa):
    _, shared = built
    program, answer = shared.parent / "generate", 16
    result = demo.generate("Sort these numbers: 31, 7, 52, 12.", max_steps=answer, gen_length=answer, block_length=answer)
    tokens = result.sequences[0].tolist()
    assert str(result) == "7, 12, 31, 52"
    compiled("-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Iinclude", "examples/generate.c", "-x", "none", shared, "-o", program)
    libraries = Path(run(COMPILER, "-print-file-name=libc.so.6").stdout).parent.parent
    done = run(EMULATOR, "-L", libraries, "-E", f"LD_LIBRARY_PATH={shared.parent}", program, DEMO, ",".join(map(str, tokens[:-answer])),
               answer, answer, LLADA_ISA=isa, LLADA_NUM_THREADS="2")
    assert (done.returncode, done.stderr) == (0, "") and [int(token) for token in done.stdout.split()] == tokens[-answer:]
