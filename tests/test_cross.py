"""The aarch64 build: cross-compiled with what setup.py says, and run under QEMU."""
import os
import platform
import runpy
import shutil
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import llada_native
from llada_native.model import DEMO

ROOT = Path(__file__).parent.parent
COMPILER, SYMBOLS, EMULATOR = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-nm", "qemu-aarch64-static"
MISSING = [tool for tool in (COMPILER, SYMBOLS, EMULATOR) if shutil.which(tool) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)}")]


def run(*command, **environment):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def compiled(*arguments):
    done = run(COMPILER, *arguments)
    assert done.returncode == 0, done.stderr


def declared():
    """The arguments that setup.py would give to setup() on aarch64, with warnings as errors."""
    setuptools, found = pytest.importorskip("setuptools"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("LLADA_CXXFLAGS", "-Werror")
        patch.setattr(platform, "machine", lambda: "aarch64")
        patch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
        patch.setitem(sys.modules, "Cython.Build", types.SimpleNamespace(cythonize=lambda *_, **__: []))
        runpy.run_path("setup.py")
    return found


def macros(pairs):
    return [f"-D{name}={value}" for name, value in pairs]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(objects of the libraries, libllada.so)"""
    folder, arguments = tmp_path_factory.mktemp("aarch64"), declared()
    interface = arguments["ext_modules"][-1]
    jobs = []
    for name, library in arguments["libraries"]:
        flags = [*library["cflags"], *macros(library["macros"]), *(f"-I{path}" for path in library["include_dirs"]), "-fPIC"]
        jobs += [(flags, source, folder / f"{name}-{source.replace('/', '-')}.o") for source in library["sources"]]
    flags = [*interface.extra_compile_args, *macros(interface.define_macros), f'-DLLADA_VERSION="{llada_native.__version__}"',
             *(f"-I{path}" for path in interface.include_dirs), "-fPIC"]
    jobs += [(flags, source, folder / "interface.o") for source in interface.sources]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        list(compilers.map(lambda job: compiled(*job[0], "-c", job[1], "-o", job[2]), jobs))
    objects = sorted(folder.glob("llada_*.o"))
    shared = folder / "libllada.so"
    compiled("-shared", folder / "interface.o", *objects, *interface.extra_link_args, "-Wl,--no-undefined", "-o", shared)
    return objects, shared


@pytest.fixture(scope="module")
def driver(built):
    objects, shared = built
    program = shared.parent / "kernels"
    compiled("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Iinclude", "-Isrc_cpp", "-static",
             *sorted((ROOT / "tests" / "cross").glob("*.cpp")), *objects, "-o", program)
    return program


@pytest.mark.parametrize("isa", ["neon", "neondot"])
def test_kernels(driver, isa):
    done = run(EMULATOR, driver, isa)
    assert done.returncode == 0 and done.stdout.count("compared") == 15, done.stdout


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
