"""What setup.py declares for a machine, and its objects by a compiler for that machine."""
import os
import platform
import runpy
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import llada_native

ROOT = Path(__file__).parent.parent


def declared(machine, system="linux", **environment):
    """The arguments that setup.py would give to setup() on that machine; of its variables, only the given ones are set."""
    setuptools, found = pytest.importorskip("setuptools"), {}
    others = {name: value for name, value in os.environ.items() if name not in ("ARCHFLAGS", "LLADA_CXXFLAGS")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(os, "environ", others | environment)
        patch.setattr(sys, "platform", system)
        patch.setattr(platform, "machine", lambda: machine)
        patch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
        patch.setitem(sys.modules, "Cython.Build", types.SimpleNamespace(cythonize=lambda *_, **__: []))
        runpy.run_path("setup.py")
    return found


def compiled(compiler, *arguments):
    done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def objects(compiler, arguments, folder, *more):
    """The objects of the libraries, and last that of the C interface."""
    interface, jobs = arguments["ext_modules"][-1], []
    for name, library in arguments["libraries"]:
        flags = _flags(library["cflags"], library["macros"], library["include_dirs"])
        jobs += [(flags, source, folder / f"{name}-{source.replace('/', '-')}.o") for source in library["sources"]]
    version = ("LLADA_VERSION", f'"{llada_native.__version__}"')
    flags = _flags(interface.extra_compile_args, [*interface.define_macros, version], interface.include_dirs)
    jobs += [(flags, source, folder / "interface.o") for source in interface.sources]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        list(compilers.map(lambda job: compiled(compiler, *job[0], *more, "-c", job[1], "-o", job[2]), jobs))
    return [job[2] for job in jobs]


def _flags(cflags, macros, include_dirs):
    return [*cflags, *(f"-D{name}={value}" for name, value in macros), *(f"-I{path}" for path in include_dirs)]
