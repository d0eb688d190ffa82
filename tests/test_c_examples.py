"""The examples of the C interface, a C program and a ctypes script, against the Python API."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import bad_folders as bad
import folders
import pytest
from c_api import COMPILER, EXAMPLES, PROMPT, example, needs_compiler, run

from llada_native import LLaDAForCausalLM
from llada_native.library import get_include, get_library
from llada_native.model import DEMO


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C example, compiled strictly."""
    built = tmp_path_factory.mktemp("program") / "generate"
    library = Path(get_library())
    subprocess.run([COMPILER, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{get_include()}", EXAMPLES / "generate.c",
                    library, f"-Wl,-rpath,{library.parent}", "-o", built], check=True)
    return built


DEMO_PROMPT = [506, 509, 84, 82, 258, 510, 198, 198, 399, 354, 403, 25, 220, 18, 16, 11, 220, 22, 13, 511, 509, 431, 82, 500, 83, 257,
               83, 510, 198, 198]


@needs_compiler
@pytest.mark.parametrize(("prompt", "gen_length", "block_length"), [(DEMO_PROMPT, 48, 16), (DEMO_PROMPT, 64, 64), ([300], 4, 1)])
def test_examples_answer_like_python_on_the_demo_model(program: Path, demo: Any, prompt: list[int], gen_length: int,
                                                       block_length: int) -> None:
    answers_agree(program, demo, DEMO, prompt, gen_length, block_length)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("gen_length", "block_length"), [(8, 8), (40, 40), (12, 4), (1, 1)])
def test_examples_answer_like_python_on_random_models(program: Path, dtype: str, gen_length: int, block_length: int,
                                                      tmp_path: Path) -> None:
    folder = folders.write(tmp_path, bad.GOOD, bad.TENSORS, dtype)
    with LLaDAForCausalLM(folder) as python:
        answers_agree(program, python, folder, PROMPT, gen_length, block_length)


def answers_agree(program: Path, python: Any, folder: Path, prompt: list[int], gen_length: int, block_length: int) -> None:
    result = python.generate(prompt, max_steps=gen_length, gen_length=gen_length, block_length=block_length)
    expected = [int(i) for i in result.sequences[0][len(prompt):]]
    ids = ",".join(map(str, prompt))
    done = run(program, folder, ids, gen_length, block_length)
    assert (done.returncode, done.stderr) == (0, "") and [int(i) for i in done.stdout.split()] == expected
    assert example.generate(str(folder), prompt, gen_length, block_length) == expected


@needs_compiler
@pytest.mark.parametrize(("arguments", "code", "message"), [
    ((), 2, "usage"), (("/no/such", "1", "4", "4"), 1, "found nothing"), ((DEMO, "1,x", "4", "4"), 2, "PROMPT_IDS"),
    ((DEMO, "", "4", "4"), 2, "PROMPT_IDS"), ((DEMO, "1", "0", "4"), 2, "GEN_LENGTH"), ((DEMO, "1", "4", "3"), 2, "divisor"),
    ((DEMO, "512", "4", "4"), 1, r"tokens\[0\]"), ((DEMO, "1", "1024", "4"), 1, "max_tokens"),
])
def test_the_program_explains_its_errors(program: Path, arguments: Any, code: int, message: str) -> None:
    done = run(program, *arguments)
    assert done.returncode == code and re.search(message, done.stderr) and done.stdout == ""


def test_the_ctypes_example_as_a_command() -> None:
    done = run(sys.executable, EXAMPLES / "generate_ctypes.py", DEMO, "300", "--gen-length", "2", "--block-length", "2")
    assert done.returncode == 0 and len(done.stdout.split()) == 2
    with pytest.raises(RuntimeError, match="found nothing"):
        example.generate("/no/such", [1])
    with pytest.raises(ValueError, match="divisor"):
        example.generate(str(DEMO), [1], 4, 3)
