"""Every command and every program of README, docs and CONTRIBUTING does what a reader of it does: it is run, in a folder of its own.

A page's blocks run one after the other. Where the page has a checkpoint, a file or a server that nobody has here, `FILES` and `ADDRESS` put
something small in its place. Commands that cannot run in a test have a rule of their own in `RULES`, which checks what can be checked, and
gives the reason. A command without a rule fails: it wants one.
"""
from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pages
import pytest
import servers
from gguf_files import demo_file
from hubs import Hub
from pages import PAGES, ROOT, TRANSLATIONS, extras, is_target

import llada_native
from llada_native import bench, cli
from llada_native.library import get_include, get_library
from llada_native.model import DEMO

ADDRESS = "127.0.0.1:8000"  # of the pages' server
LANGUAGES = {"sh", "console", "python", "c"}
READ = [page for page in PAGES if page not in TRANSLATIONS]  # test_docs.py: translations have the same code
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")

# What readers have in their folder, and what stands for it: a folder or file, or what makes it.
FILES: dict[str, Path | str | Callable[[Path], object]] = {
    "path/to/LLaDA-8B-Instruct": DEMO,
    "LLaDA-8B-Instruct": DEMO,
    "LLaDA-8B-Instruct-Q8_0.gguf": demo_file,
    "tools": ROOT / "tools",
    "examples": ROOT / "examples",
    "docs/README.md": "",
    "question.txt": "What is 12 plus 30?\n",
    "questions.txt": "What is 12 plus 30?\nWhat is 17 plus 25?\n",
    "prompts.jsonl": '"What is 12 plus 30?"\n{"id": "b", "prompt": "What is 17 plus 25?"}\n',
}
REPOSITORIES = {"GSAI-ML/LLaDA-8B-Instruct": DEMO}  # of the hub
PROGRAMS = {"llada-native": '-m llada_native "$@"', ".venv/bin/llada-native": '-m llada_native "$@"', "python": '"$@"'}


# ---- how a command is run

@dataclass(frozen=True)
class Rule:
    """What becomes of commands of a pattern: `make` gives the line to run, or None where it has checked the command itself."""

    pattern: str
    make: Callable[[re.Match[str]], str | None]
    reason: str


def as_it_is(found: re.Match[str]) -> str:
    return found[0]


def with_one_prompt(found: re.Match[str]) -> str:
    return f"{found[0]} --prompts 1"


@functools.cache
def served(line: str) -> None:
    """It answers /health on a free port, and ends well when it is told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, environment = FOLDERS[-1]
    command = [sys.executable, "-m", "llada_native", *shlex.split(line)[1:], "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + servers.PATIENCE
            while True:
                assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.status == 200
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(servers.PATIENCE) == 0, process.stderr.read()
        finally:
            process.kill()


def benched(found: re.Match[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(bench, "SHAPES", {(64, 64): 4, (96, 64): 2, (64, 96): 1})
        patch.setattr(bench, "SECONDS", 0.001)
        patch.setattr(bench, "WARMUP", 0.001, raising=False)
        words = shlex.split(found[0])
        for name, value in (word.split("=") for word in words[:words.index("llada-native")]):
            patch.setenv(name, value)
        assert cli.main(words[words.index("llada-native") + 1:]) == 0
    assert "int4" in printed.getvalue()


def installable(found: re.Match[str]) -> None:
    """Of this folder with extras that there are, or packages that pyproject.toml names."""
    project = pages.text("pyproject.toml")
    for word in shlex.split(found[1]):
        if word.startswith("."):
            assert set(word[1:].strip("[]").split(",")) - {""} <= extras(), word
        else:
            name = re.match(r"[\w-]+", word)[0]
            assert re.search(rf'"{name}\b', project), word


def made(found: re.Match[str]) -> None:
    assert is_target(found[1]), found[0]


def benchmarks_chosen(found: re.Match[str]) -> None:
    """Each alternative is the beginning of the name of a benchmark."""
    names = [f"{path.stem}.{name}.{method}" for path in (ROOT / "benchmarks").glob("bench_*.py")
             for name, body in re.findall(r"^class (\w+)[^\n]*\n(.*?)(?=^\S|\Z)", path.read_text("utf-8"), re.M | re.S)
             for method in re.findall(r"^    def ((?:time|track)_\w+)", body, re.M)]
    for part in found[1].split("|"):
        beginning = part.partition(".*")[0]
        assert any(re.search(beginning, name) for name in names), (part, names)


def options_exist(found: re.Match[str]) -> None:
    """Of a tool: it is there, and so are the options and the files that it is given."""
    words = shlex.split(found[0])[1:]
    source = (ROOT / words[0]).read_text("utf-8")
    for word in words[1:]:
        assert f'"{word}"' in source if word.startswith("--") else "/" not in word or (ROOT / word).exists(), word


def nothing(found: re.Match[str]) -> None:
    pass


RULES = [
    Rule(r"llada-native serve\b.*", lambda found: served(found[0]), "it does not end by itself: started on a free port, asked, and ended"),
    Rule(r"(?:\w+=\S+ )*llada-native bench\b.*", benched, "minutes at the shapes of LLaDA-8B: run at small ones"),
    Rule(r"(?:\w+=\S+ )*(?:echo \"[^\"]*\" \| )?(?:\.venv/bin/)?llada-native .*", as_it_is, ""),
    Rule(r"source <\(llada-native [^)]*\)", as_it_is, ""),
    Rule(r"mkdir -p \S+ && llada-native .*", as_it_is, ""),
    Rule(r"curl .*", as_it_is, ""),
    Rule(r"\w+=\$\(python -c .*\)", as_it_is, ""),
    Rule(r"(?:cc|\./generate) .*", as_it_is, ""),
    Rule(r"python (?:tools/how_it_works|examples/\w+)\.py\b.*", as_it_is, ""),
    Rule(r"python tools/demo_evaluate\.py.*", with_one_prompt, "minutes with 200 prompts a task: one"),
    Rule(r"python tools/demo_train\.py .*", options_exist, "needs torch and 40 minutes"),
    Rule(r"pip install (.*)", installable, "compiles, or needs a network; make test installs the package, as .ci/run does"),
    Rule(r"python3 -m venv (\S+) && \. \1/bin/activate", nothing, "make test makes an environment, as .ci/run does"),
    Rule(r"make (\w+)", made, "compiles, or runs what this test is part of"),
    Rule(r"PYTHONPATH=\$PWD python -m pytest", nothing, "these are the tests"),
    Rule(r"asv run --quick --python=same --bench \"(.*)\"", benchmarks_chosen, "hours"),
]


def ruled(line: str) -> str | None:
    for rule in RULES:
        found = re.fullmatch(rule.pattern, line)
        if found:
            return rule.make(found)
    pytest.fail(f"no rule of {Path(__file__).name} says how to run this command: {line}")


# ---- where it is run

FOLDERS: list[tuple[Path, dict[str, str]]] = []  # of the page that runs, and its environment


@pytest.fixture(scope="module")
def address(demo):
    with servers.running(demo) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def hub():
    found = Hub()
    for name, folder in REPOSITORIES.items():
        found.publish(name, folder)
    yield found.address
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def folder(tmp_path, hub, page):
    """A reader's, with those of `FILES`, and the environment of the commands in it. What takes time to make is for pages that name it."""
    for name, made in FILES.items():
        if callable(made) and name not in pages.text(page):
            continue
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(made, Path):
            path.symlink_to(made)
        elif isinstance(made, str):
            path.write_text(made, "utf-8")
        else:
            made(path)
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    for name, arguments in PROGRAMS.items():
        program = tmp_path / name if "/" in name else tmp_path / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path, "HOME": str(tmp_path),
                   "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "clone": str(ROOT), "MPLBACKEND": "agg"}
    FOLDERS.append((tmp_path, environment))
    yield tmp_path
    FOLDERS.pop()


# ---- shell

MARK = "\x1e"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in READ if pages.commands(page)])
def test_commands(page, folder, address):
    """In one shell, one after the other: the first that fails ends it."""
    commands = pages.commands(page)
    lines = [(ruled(command.line), command) for command in commands]
    script = "".join(f"printf '{MARK}{i}\\n'; printf '{MARK}\\n' >&2\n{line}\n" for i, (line, _) in enumerate(lines) if line is not None)
    if "curl " in script and not shutil.which("curl"):
        pytest.skip("no curl")
    script = "set -euo pipefail\n" + script.replace(ADDRESS, address)
    run = subprocess.run(["bash", "-c", script], cwd=folder, env=FOLDERS[-1][1], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    printed = dict(part.split("\n", 1) for part in run.stdout.split(MARK)[1:])
    last = max(map(int, printed), default=0)
    assert run.returncode == 0, f"{commands[last].line}\n{run.stderr.rpartition(MARK)[2]}"
    for i, (line, command) in enumerate(lines):
        if line is not None and command.output is not None:
            assert printed[str(i)] == command.output, command.line
    if page in LEAVES:
        LEAVES[page](folder, printed)


def pictures(folder: Path, printed: object) -> None:
    """They are those of the page, whatever kernels drew them."""
    for name in ("denoising", "blocks", "thresholds", "caches"):
        assert (folder / f"docs/{name}.svg").read_text("utf-8") == pages.text(f"docs/{name}.svg"), name


def both_runs(folder: Path, printed: object) -> None:
    assert "exact" in (folder / "both.html").read_text("utf-8")


def an_answer(folder: Path, printed: dict[str, str]) -> None:
    [curled] = [json.loads(text) for text in printed.values() if text.startswith("{")]
    assert curled["choices"][0]["message"]["content"] == "17 + 25 = 42"


def ids(folder: Path, printed: dict[str, str]) -> None:
    model = llada_native.LLaDAForCausalLM()
    wanted = model.generate([1, 2, 3], gen_length=64, block_length=32, max_steps=64).sequences[0][3:]
    assert list(printed.values())[-1].split() == [str(i) for i in wanted]


def answered(folder: Path, printed: object) -> None:
    assert [json.loads(line)["text"] for line in (folder / "answers.jsonl").read_text("utf-8").splitlines()] == [
        "12 + 30 = 42", "17 + 25 = 42"]


# What is left behind, beyond an exit code of 0.
LEAVES: dict[str, Callable[[Path, dict[str, str]], None]] = {
    "README.md": answered,
    "docs/command_line.md": answered,
    "docs/how_it_works.md": pictures,
    "docs/replay.md": both_runs,
    "docs/server.md": an_answer,
    "docs/c_api.md": ids,
}


@pytest.mark.parametrize("line", ["rm -rf x", "llada-nativ generate x", "git clone x", "make demo && rm x", "pip install x; rm y",
                                  "python tools/other.py", "FOO=1 unknown", "make nothing", "pip install '.[nothing]'",
                                  "pip install nothing", 'asv run --quick --python=same --bench "Nothing"',
                                  "python tools/demo_train.py --nothing"])
def test_a_command_that_is_wrong_or_has_no_rule_fails(line):
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        ruled(line)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_that_is_run(page):
    assert pages.languages(page) <= LANGUAGES


# ---- Python and C

# Of what a page's programs print, some lines.
PRINTED = {
    "README.md": ["7, 12, 31, 52"],
    "docs/quick_start.md": ["17 + 25 = 42", "sun cat red",
                            "Once upon a time, a fox lived near a river. One day the fox found a coin in the river. The fox was very "
                            "happy. (2 passes)"],
    "docs/parameters.md": ["12 + 30 = 42", "12 + 30 = 42.", "True (10, 512)"],
    "docs/command_line.md": ["7, 12, 31, 52"],
    "docs/decoding.md": ["14 passes, 1302 rows, 40 tokens revealed", "7, 12, 31, 52 1"],
    "docs/running.md": ["5120 2560"],
    "docs/performance.md": [],
    "docs/how_it_works.md": [],
    "docs/replay.md": [],
    "docs/server.md": ["7, 12, 31, 52", "7, 12, 31, 52"],
    "docs/tasks.md": [f"{i} {i} + 25 = {i + 25} stop" for i in range(20, 26)],
}
WRITTEN = {"docs/replay.md": {"run.html", "both.html", "run.trace", "again.html", "plots.png"},
           "docs/how_it_works.md": {"run.html", "run.png"}}


def test_every_page_with_programs_is_expected():
    assert {page for page in READ if pages.blocks(page, "python")} == set(PRINTED)


@pytest.mark.parametrize("page", PRINTED)
def test_python(page, folder, address, monkeypatch):
    """Those of a page one after the other, as a reader would."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in pages.blocks(page, "python"):
            exec(compile(block.replace(ADDRESS, address), page, "exec"), names)
    lines = printed.getvalue().splitlines()
    for line in PRINTED[page]:
        lines.remove(line)
    for name in WRITTEN.get(page, ()):
        assert (folder / name).stat().st_size
    for value in names.values():
        if isinstance(value, llada_native.LLaDAForCausalLM):
            value.close()


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize(("page", "block"), [(page, block) for page in READ for block in pages.blocks(page, "c")])
def test_c(page, block, folder):
    """The inside of a function, which ends without an error."""
    source, library = folder / "main.c", Path(get_library())
    source.write_text(f'#include <stdio.h>\n#include "llada/llada.h"\nint main(void) {{\n{block}\nreturn lladaLastStatus();\n}}\n')
    subprocess.run([COMPILER, "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-variable", f"-I{get_include()}", source, library,
                    f"-Wl,-rpath,{library.parent}", "-o", folder / "main"], check=True)
    done = subprocess.run([folder / "main"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
