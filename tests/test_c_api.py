"""The C interface: its header and library, and what each call refuses."""
from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import bad_folders as bad
import folders
import numpy as np
import pytest
from c_api import (
    COMPILER,
    INVALID_ARGUMENT,
    MASK,
    NONE,
    NOT_FINITE,
    OK,
    PROMPT,
    Model,
    array,
    create,
    failed,
    lib,
    needs_compiler,
    pointer,
    run,
)
from memory import resident

import llada_native
from llada_native.library import get_include, get_library


@pytest.fixture
def model(tiny: Any) -> Any:
    with Model(tiny[0]) as loaded:
        yield loaded


@needs_compiler
@pytest.mark.parametrize(("language", "standard"), [("c", "c99"), ("c", "c11"), ("c++", "c++11"), ("c++", "c++17")])
def test_the_header_is_strict(language: str, standard: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text('#include "llada/llada.h"\nint main(void) { return lladaLastStatus(); }\n')
    subprocess.run([COMPILER, "-x", language, f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Wstrict-prototypes" if language == "c"
                    else "-Wshadow", "-Werror", "-fsyntax-only", f"-I{get_include()}", source], check=True)


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="reads ELF symbols")
def test_the_library_exports_the_header_and_needs_no_python() -> None:
    header = (Path(get_include()) / "llada" / "llada.h").read_text()
    declared = set(re.findall(r"^LLADA_API [^;(]*?(\w+)\(", header, re.MULTILINE))
    symbols = run("nm", "-D", get_library()).stdout
    assert set(re.findall(r"^\w+ [A-TV-Z] (\w+)$", symbols, re.MULTILINE)) == declared and len(declared) == 17
    assert not re.search(r"\b_?Py", symbols)


def test_version() -> None:
    assert lib.lladaVersion().decode() == llada_native.__version__


REQUEST = [[1, MASK, 2]]
BAD_ROUNDS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature NaN": ({"temperature": [np.nan]}, r"temperature\[0\].*nan"),
    "temperature infinite": ({"temperature": [np.inf]}, r"temperature\[0\].*inf"),
    "temperature negative": ({"temperature": [-1]}, r"temperature\[0\].*-1"),
    "no uniform": ({"temperature": [1]}, r"uniform: expected a function.*temperature\[0\]"),
    "topp 0": ({"topp": [0]}, r"topp\[0\]: expected a number above 0 and up to 1"),
    "topp above 1": ({"topp": [1.5]}, r"topp\[0\].*1\.5"),
    "topp NaN": ({"topp": [np.nan]}, r"topp\[0\].*nan"),
    "uniform 1": ({"temperature": [1], "uniform": lambda: 1.0}, r"uniform: expected a number in \[0, 1\), found 1"),
    "uniform negative": ({"temperature": [1], "uniform": lambda: -0.1}, "uniform.*-0.1"),
    "uniform NaN": ({"temperature": [1], "uniform": lambda: float("nan")}, "uniform.*nan"),
}


@pytest.mark.parametrize("kind", BAD_ROUNDS)
def test_a_round_that_cannot_be(kind: str, model: Model) -> None:
    arguments, message = BAD_ROUNDS[kind]
    status, output, where, confidence = model.infer(REQUEST, **arguments)
    assert status == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, message)
    assert output[0] == where[0] == confidence[0] == 77, "outputs stay as they were"


def test_batches_are_checked(model: Model) -> None:
    for call in (model.forward, model.infer):
        for requests, message in (([[1, 64]], r"tokens\[1\]: expected 0 to 63, found 64"), ([[NONE]], r"tokens\[0\].*4294967295"),
                                  ([[1], []], r"req_lens\[1\]: expected at least 1, found 0"),
                                  ([[1] * 513], r"req_lens\[0\].*max_tokens \(512\), found 513")):
            assert call(requests)[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, message)
    tokens, lengths, logits = array([1, 2, 3], np.uint32), array([2, 2], np.uint32), np.empty((4, 64), np.float32)
    for ntok, nreq, lens, message in ((3, 2, lengths, r"ntok: expected the sum of req_lens \(4\), found 3"), (3, 0, lengths, "nreq"),
                                      (3, 1, lengths, "sum of req_lens"), (3, 2, array([NONE, 4], np.uint32), r"req_lens\[0\]")):
        assert lib.forwardBatchLLaDA(model.handle, pointer(tokens), ntok, pointer(lens), nreq, None, None, pointer(logits)) \
            == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, message)
    assert model.forward([[1] * 512])[0] == OK


@pytest.mark.parametrize("which", ["model", "tokens", "req_lens", "logits"])
def test_null_arguments_of_forward(which: str, model: Model) -> None:
    tokens, lengths, logits = array([1], np.uint32), array([1], np.uint32), np.empty((1, 64), np.float32)
    given = {"model": model.handle, "tokens": pointer(tokens), "ntok": 1, "req_lens": pointer(lengths), "nreq": 1, "req_pos": None,
             "kv_caches": None, "logits": pointer(logits)}
    assert lib.forwardBatchLLaDA(*given.values()) == OK
    assert lib.forwardBatchLLaDA(*(given | {which: None}).values()) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, f"^{which}: .*NULL")


@pytest.mark.parametrize("which", ["model", "tokens", "req_lens", "output", "positions"])
def test_null_arguments_of_a_round(which: str, model: Model) -> None:
    tokens, one = array([MASK], np.uint32), array([1], np.uint32)
    output, positions = np.empty(1, np.uint32), np.empty(1, np.uint32)
    given = {"model": model.handle, "tokens": pointer(tokens), "ntok": 1, "req_lens": pointer(one), "nreq": 1,
             **dict.fromkeys(("req_pos", "kv_caches", "temperature", "topk", "topp", "block_ends", "uniform", "state")),
             "output": pointer(output), "positions": pointer(positions), "confidence": None}
    assert lib.inferBatchLLaDA(*given.values()) == OK
    assert lib.inferBatchLLaDA(*(given | {which: None}).values()) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, f"^{which}: .*NULL")


def test_other_null_arguments(model: Model) -> None:
    assert lib.lladaLoadModel(None, 1) is None and failed(INVALID_ARGUMENT, "^folder: .*NULL")
    assert lib.lladaModelMeta(None, ctypes.byref(model.meta)) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "^model")
    assert lib.lladaModelMeta(model.handle, None) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "^out")
    assert lib.createLLaDAModel(None, None, 0, 1, None) is None and failed(INVALID_ARGUMENT, "^meta: .*NULL")
    assert lib.createLLaDAModel(ctypes.byref(model.meta), None, 0, 1, None) is None and failed(INVALID_ARGUMENT, "^weights: .*NULL")
    assert lib.lladaSetThreads(None, 1) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "^model")
    assert lib.lladaThreads(None) == 0 and failed(INVALID_ARGUMENT, "^model")
    assert lib.destroyLLaDAModel(None) == OK and lib.lladaLastError() == b""


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        embedding = bad.TENSORS["model.transformer.wte.weight"].copy()
        embedding[5] = value
        folders.write(tmp_path, bad.GOOD, bad.TENSORS | {"model.transformer.wte.weight": embedding})
        with Model(tmp_path) as model:
            for temperature in (0, 1):
                status, output, *_ = model.infer([[1, MASK], [5, MASK]], temperature=[temperature] * 2, topk=[3] * 2, topp=[0.5] * 2,
                                                 uniform=lambda: 0.5)
                assert status == NOT_FINITE and failed(NOT_FINITE, "request 1: .*position 1 .*weights are damaged")
                assert output[0] == 77


def test_errors_belong_to_their_thread(model: Model) -> None:
    assert lib.lladaSetThreads(model.handle, 0) == INVALID_ARGUMENT
    seen = []
    thread = threading.Thread(target=lambda: seen.append((lib.lladaLastStatus(), lib.lladaLastError())))
    thread.start()
    thread.join()
    assert seen == [(OK, b"")] and failed(INVALID_ARGUMENT, "threads: expected 1 to 1024, found 0")


def test_threads(model: Model, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in (1, 2, 3):
        assert lib.lladaSetThreads(model.handle, threads) == OK and lib.lladaThreads(model.handle) == threads
        results.append(model.forward([PROMPT, list(range(30))])[1])
    assert all(np.array_equal(results[0], r) for r in results)
    assert lib.lladaSetThreads(model.handle, 1025) == INVALID_ARGUMENT and lib.lladaThreads(model.handle) == 3
    assert lib.lladaLoadModel(str(tiny[0]).encode(), -1) is None and failed(INVALID_ARGUMENT, "threads.*-1")
    with Model(tiny[0], 0) as automatic:
        assert lib.lladaThreads(automatic.handle) == llada_native.cpu_info()["num_threads"]


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("", None), ("0", None), ("two", None), ("1025", None), ("3 4", None)])
def test_threads_of_the_environment(value: str, threads: int | None, tiny: Any) -> None:
    code = ("import ctypes, sys; lib = ctypes.CDLL(sys.argv[1]); lib.lladaLoadModel.restype = ctypes.c_void_p;"
            "model = ctypes.c_void_p(lib.lladaLoadModel(sys.argv[2].encode(), 0)); print(lib.lladaLastStatus(), lib.lladaThreads(model))")
    done = subprocess.run([sys.executable, "-c", code, get_library(), str(tiny[0])], capture_output=True, text=True,
                          env={**os.environ, "LLADA_NUM_THREADS": value})
    status, found = map(int, done.stdout.split())
    if value == "":
        assert status == OK and found >= 1
    else:
        assert (status, found) == ((OK, threads) if threads else (INVALID_ARGUMENT, 0)), done.stderr


def test_many_threads_share_a_model(model: Model) -> None:
    """Calls take turns; each has its own cache."""
    _, expected = model.forward([PROMPT])
    wrong = []

    def work() -> None:
        cache = model.cache()
        for _ in range(50):
            status, logits = model.forward([PROMPT], [0], [cache])
            if status != OK or not np.array_equal(logits, expected):
                wrong.append(status)
        lib.dropKVCache(model.handle, cache)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.resident
def test_failures_leak_nothing(model: Model, tmp_path: Path) -> None:
    broken, half = bad.good(tmp_path / "broken"), bad.good(tmp_path / "half")
    (broken / "config.json").write_text("{")
    bad.tensors(up_proj=np.zeros((1, 1), np.float32))(half)
    cache = model.cache()

    def fail() -> None:
        assert lib.lladaLoadModel(str(broken).encode(), 1) is None
        assert lib.lladaLoadModel(str(half).encode(), 1) is None
        assert create(bad.GOOD, bad.TENSORS, tweak={"head_dim": 7}) is None
        assert model.forward([[64] * 400])[0] == INVALID_ARGUMENT
        assert model.infer([[MASK] * 400], None, [cache], temperature=[1], uniform=lambda: 2.0)[0] == INVALID_ARGUMENT

    for _ in range(50):
        fail()
    gc.collect()
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        fail()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    assert resident() - before < 8 << 20
    assert lib.dropKVCache(model.handle, cache) == OK
