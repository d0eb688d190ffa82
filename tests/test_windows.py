"""The C++ library on Windows' C library: compiled by MinGW-w64 with the flags of GCC, and run under Wine. MSVC is not here."""
import os
import shutil
import subprocess
from functools import partial

import build_script
import pytest
from build_script import declared, objects

from llada_native.model import DEMO

COMPILER = "x86_64-w64-mingw32-g++-posix"
WINE = shutil.which("wine64", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/lib/wine"]))
MISSING = [name for name, found in ((COMPILER, shutil.which(COMPILER)), ("wine64", WINE)) if found is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not there: {', '.join(MISSING)}")]


compiled = partial(build_script.compiled, COMPILER)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """examples/generate.c and its library, with the kernels that every machine has."""
    folder = tmp_path_factory.mktemp("windows")
    parts = objects(COMPILER, declared("any", LLADA_CXXFLAGS="-Werror"), folder, "-O1")
    compiled("-shared", "-static", *parts, "-o", folder / "libllada.dll")
    compiled("-static", "-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Iinclude", "examples/generate.c", "-x", "none",
             folder / "libllada.dll", "-o", folder / "generate.exe")
    return folder / "generate.exe"


def test_the_c_program_answers_as_this_machine_does(program, demo):
    answer = 16
    tokens = demo.generate("Sort these numbers: 31, 7, 52, 12.", max_steps=answer, gen_length=answer, block_length=answer).sequences[0]
    variables = {"WINEPREFIX": str(program.parent / "wine"), "WINEDEBUG": "-all", "LLADA_NUM_THREADS": "2"}
    done = subprocess.run([WINE, program, f"Z:{DEMO}", ",".join(map(str, tokens[:-answer])), str(answer), str(answer)],
                          capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0 and [int(token) for token in done.stdout.split()] == tokens[-answer:].tolist(), done.stderr
