"""The package as installed: import, typing, the command line, the build."""
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import llada_native
from llada_native import cli

ROOT = Path(__file__).parent.parent
ELSEWHERE = Path(__file__).parent  # not the root, whose sources would hide the installed package
PROMPT = "Sort these numbers: 31, 7, 52, 12."


def python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ELSEWHERE, env={**os.environ, **environment})


def command(*arguments, stdin=""):
    return subprocess.run([sys.executable, "-m", "llada_native", *arguments], capture_output=True, text=True, cwd=ELSEWHERE, input=stdin)


def test_import_is_light():
    """Under 0.3 s (the best of five, machines are shared), no thread, nothing printed, no heavy library."""
    best = min(_timed_import() for _ in range(5))
    assert best < 0.3, f"{best:.3f} s"
    run = python("import llada_native, sys, threading, os\n"
                 "heavy = {'torch', 'transformers', 'scipy', 'tokenizers', 'safetensors', 'jinja2', 'rich'} & set(sys.modules)\n"
                 "print(heavy, threading.active_count(), len(os.listdir('/proc/self/task')))", OPENBLAS_NUM_THREADS="1")
    assert run.stdout == "set() 1 1\n" and run.stderr == ""


def _timed_import():
    start = time.perf_counter()
    assert python("import llada_native").returncode == 0
    return time.perf_counter() - start


def test_typed_and_complete():
    folder = Path(llada_native.__file__).parent
    for name in ("py.typed", "_native.pyi", "_sampler.pyi", "demo/model.safetensors", "demo/tokenizer.json",
                 "replay/page.html", "replay/page.css", "replay/page.story.js", "replay/page.js"):
        assert (folder / name).is_file(), name
    assert all(hasattr(llada_native, name) for name in llada_native.__all__)
    assert llada_native.__version__ in (ROOT / "pyproject.toml").read_text()


def test_no_compiler_is_needed(tmp_path):
    """From an empty folder, with nothing on PATH."""
    empty = {"PATH": str(tmp_path), "CC": "false", "CXX": "false"}
    for arguments in (["-c", f"import llada_native; print(llada_native.generate({PROMPT!r}))"], ["-m", "llada_native", "generate", PROMPT]):
        run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **empty})
        assert (run.returncode, run.stdout, run.stderr) == (0, "7, 12, 31, 52\n", "")


def test_forced_isa(isa):
    run = python("import llada_native as ln; print(ln.cpu_info()['active_isa'], ln.LLaDAForCausalLM.from_pretrained()._backend.isa)",
                 LLADA_ISA=isa)
    assert run.stdout.split() == [isa, isa]


def test_isas_agree_on_the_golden_answer(isa):
    model = llada_native.LLaDAForCausalLM.from_pretrained(isa=isa)
    assert str(model.generate(PROMPT)) == "7, 12, 31, 52"


def test_module_generate_needs_no_model():
    assert str(llada_native.generate(PROMPT)) == "7, 12, 31, 52"


def test_command_generate():
    run = command("generate", PROMPT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "7, 12, 31, 52\n", "")


def test_command_reads_standard_input_and_writes_json():
    run = command("generate", "--json", stdin=PROMPT + "\n")
    out = json.loads(run.stdout)
    assert run.returncode == 0 and out["answers"] == [{"prompt": PROMPT, "text": "7, 12, 31, 52", "finish_reason": "stop"}]
    assert out["backend"] == "native" and out["n_forward"] == 64


def test_command_info():
    out = json.loads(command("info", "--json").stdout)
    assert out["active_isa"] in out["isas"] and out["model"]["architecture"] == "LLaDAModelLM"
    assert "active_isa" in command("info").stdout


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("generate", "--model", "/no/such/folder", "hi"), 1, "found neither"),
    (("generate", "--gen-length", "48", "--block-length", "32", "hi"), 2, "would do"),
    (("generate", "--temperature", "-1", "hi"), 2, "temperature"),
    (("generate",), 1, "standard input is empty"),
    (("generate", "--isa", "nonsense", "hi"), 2, "nonsense"),
    (("generate", "--no-such-option", "hi"), 2, "unrecognized arguments"),
    ((), 2, "required"),
])
def test_command_errors_are_one_line(arguments, code, message):
    run = command(*arguments)
    assert run.returncode == code and message in run.stderr and "Traceback" not in run.stderr and run.stdout == ""
    assert run.stderr.count("\n") == 1 and run.stderr.startswith("llada-native: ")


def test_command_survives_a_reader_that_leaves():
    run = subprocess.run(f"{sys.executable} -m llada_native info | head -1; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash",
                         cwd=ELSEWHERE, capture_output=True, text=True)
    assert run.stdout.startswith("version") and "Traceback" not in run.stderr and "Exception" not in run.stderr


def test_interrupted_command(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(llada_native.LLaDAForCausalLM, "from_pretrained", interrupt)
    assert cli.main(["generate", "hi"]) == 130
    assert capsys.readouterr().err == "llada-native: interrupted\n"


def test_kernel_objects_export_nothing_but_tables(tmp_path):
    """ODR: an inline function compiled for AVX-512 must not replace the baseline's, so kernel files define nothing weak. Tables are data
    that nothing has to run for (D, R or, on macOS, S; not B)."""
    avx2, avx512 = ["-mavx2", "-mfma", "-mf16c"], ["-mavx512f", "-mavx512cd", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    flags = {"avx2": avx2, "avxvnni": [*avx2, "-mavxvnni"], "avx512": avx512, "avx512vnni": [*avx512, "-mavx512vnni"],
             "avx512bf16": [*avx512, "-mavx512vnni", "-mavx512bf16"], "avx512amx": [*avx512, "-mavx512vnni"],
             "neondot": ["-march=armv8.2-a+dotprod"]}

    def symbols(source):
        isa = source.stem.removeprefix("kernels_")
        built = tmp_path / f"{isa}.o"
        subprocess.run(["g++", "-std=c++17", "-O3", "-w", "-ffp-contract=off", *flags.get(isa, []), f"-I{ROOT}/src_cpp", "-c", source, "-o",
                        built], check=True)
        return subprocess.run(["nm", "-C", built], capture_output=True, text=True, check=True).stdout

    supported = [source for source in sorted((ROOT / "src_cpp" / "kernels").glob("kernels_*.cpp"))
                 if llada_native.cpu_info()["isas"].get(source.stem.removeprefix("kernels_"), False)]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        for listed in compilers.map(symbols, supported):
            defined = [line for line in listed.splitlines() if re.search(r" [A-TV-Zu-w] ", line)]
            assert defined and all(re.search(r" [DRS] llada::k\w+Kernels$", line) for line in defined), defined


def test_bench_times_the_median_of_calls_once_warm(monkeypatch):
    """By a clock of the test: calls of WARMUP seconds are not counted, then those of SECONDS, and three at least."""
    from llada_native import bench

    now, took = 0.0, iter([0.0625, 0.0625, 0.125, 0.25, 0.0625, 0.5, 99.0])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)

    def call():
        nonlocal now
        now += next(took)

    assert bench.seconds_of(call) == 0.1875 and next(took) == 99.0
    took = iter([0.25, 2.0, 1.0, 4.0, 99.0])
    assert bench.seconds_of(call) == 2.0 and next(took) == 99.0


def test_bench_prints_a_line_for_each_format(monkeypatch, capsys):
    """With shapes of a toy: the command, not the machine, is tested here."""
    import json

    from llada_native import bench, cli
    from llada_native.loading import DTYPES

    monkeypatch.setattr(bench, "SHAPES", {(64, 64): 4, (96, 64): 2, (64, 96): 1})
    monkeypatch.setattr(bench, "SECONDS", 0.001)
    monkeypatch.setattr(bench, "WARMUP", 0.0)
    assert cli.main(["bench", "--rows", "1", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert len(found) == 2 * len(bench.FORMATS) and all(line["gflops"] > 0 for line in found)
    assert all(set(line["products"]) == {"64x64", "64x96", "96x64"} for line in found)
    assert {"auto", *(line["dtype"] for line in found)} == set(DTYPES)
    assert cli.main(["bench", "--rows", "3"]) == 0
    assert capsys.readouterr().out.count("\n") == 2 + len(bench.FORMATS)
