"""The C interface: libllada through ctypes and from a C program, against the Python API and NumPy."""
from __future__ import annotations

import ctypes
import gc
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
import test_bad_folders as bad
from scipy.stats import chisquare

import llada_native
from llada_native import LLaDAForCausalLM, ModelFormatError, ModelMemoryError
from llada_native.library import get_include, get_library
from llada_native.model import DEMO

OK, INVALID_ARGUMENT, OUT_OF_MEMORY, UNSUPPORTED, BAD_FILE, NOT_FINITE = range(6)
FLOAT32, BFLOAT16, FLOAT16, INT8, INT4 = range(5)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16, "int8": INT8, "int4": INT4}
NONE = 0xFFFFFFFF
EXAMPLES = Path(__file__).parent.parent / "examples"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
UNIFORM = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p)
PROMPT = [3, 1, 4, 1, 5]
MASK = 58
LAYER_NAMES = {"attn_norm": "attn_norm", "q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "attn_out",
               "mlp_norm": "ff_norm", "gate_proj": "ff_proj", "up_proj": "up_proj", "down_proj": "ff_out"}


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = _module(EXAMPLES / "generate_ctypes.py")
Meta = example.Meta


class Weights(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("embedding", "final_norm", "head", *LAYER_NAMES))


lib = ctypes.CDLL(get_library())
for name in ("createLLaDAModel", "createLLaDAModelGrouped", "lladaLoadModel", "lladaLoadModelAs", "createKVCache"):
    getattr(lib, name).restype = ctypes.c_void_p
for name in ("lladaVersion", "lladaLastError"):
    getattr(lib, name).restype = ctypes.c_char_p
lib.lladaGroupSize.restype = ctypes.c_uint32


def array(values: Any, dtype: Any) -> Any:
    return None if values is None else np.ascontiguousarray(values, dtype)


def pointer(values: Any) -> Any:
    return None if values is None else ctypes.c_void_p(values.ctypes.data)


def failed(status: int, message: str = "") -> bool:
    """The last call failed in this way, and says so."""
    text = lib.lladaLastError().decode()
    assert lib.lladaLastStatus() == status, (lib.lladaLastStatus(), text)
    assert re.search(message, text) and text, text
    return True


class Model:
    """An owned LLaDAModel; `forward` and `infer` return (status, arrays)."""

    def __init__(self, folder: Path | None = None, threads: int = 1, handle: int | None = None) -> None:
        self.handle = ctypes.c_void_p(handle or lib.lladaLoadModel(str(folder).encode(), threads))
        assert lib.lladaLastStatus() == OK, lib.lladaLastError()
        self.meta = Meta()
        assert lib.lladaModelMeta(self.handle, ctypes.byref(self.meta)) == OK

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        assert lib.destroyLLaDAModel(self.handle) == OK

    def cache(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(lib.createKVCache(self.handle))

    def arguments(self, requests: list[Any], positions: Any, caches: Any) -> tuple[list[Any], Any]:
        tokens, lengths = array(np.concatenate(requests), np.uint32), array([len(r) for r in requests], np.uint32)
        positions = array(positions, np.uint32)
        if caches is not None:
            caches = (ctypes.c_void_p * len(caches))(*caches)
        return [pointer(tokens), ctypes.c_uint32(len(tokens)), pointer(lengths), ctypes.c_uint32(len(requests)), pointer(positions),
                caches], (tokens, lengths, positions, caches)

    def forward(self, requests: list[Any], positions: Any = None, caches: Any = None) -> Any:
        arguments, alive = self.arguments(requests, positions, caches)
        logits = np.full((len(alive[0]), self.meta.vocabulary), 7, np.float32)
        status = lib.forwardBatchLLaDA(self.handle, *arguments, pointer(logits))
        return status, logits

    def infer(self, requests: list[Any], positions: Any = None, caches: Any = None, temperature: Any = None, topk: Any = None,
              topp: Any = None, ends: Any = None, uniform: Callable[[], float] | None = None) -> Any:
        arguments, alive = self.arguments(requests, positions, caches)
        temperature, topp = array(temperature, np.float32), array(topp, np.float32)
        topk, ends = array(topk, np.uint32), array(ends, np.uint32)
        output, where = np.full(len(requests), 77, np.uint32), np.full(len(requests), 77, np.uint32)
        confidence = np.full(len(requests), 77.0)
        callback = UNIFORM(lambda state: uniform()) if uniform else None
        status = lib.inferBatchLLaDA(self.handle, *arguments, pointer(temperature), pointer(topk), pointer(topp), pointer(ends),
                                     callback, None, pointer(output), pointer(where), pointer(confidence))
        del alive
        return status, output, where, confidence


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad.good(tmp_path_factory.mktemp("c_api") / "model")


@pytest.fixture
def model(random_folder: Path) -> Any:
    with Model(random_folder) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C example, compiled strictly."""
    built = tmp_path_factory.mktemp("program") / "generate"
    library = Path(get_library())
    subprocess.run([COMPILER, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{get_include()}", EXAMPLES / "generate.c",
                    library, f"-Wl,-rpath,{library.parent}", "-o", built], check=True)
    return built


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


# ---- header, library


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


# ---- examples


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


# ---- folders


FOLDERS: dict[str, Callable[[Path], object]] = {
    "float32": lambda path: folders.write(path, bad.GOOD, bad.TENSORS),
    "float16": lambda path: folders.write(path, bad.GOOD, bad.TENSORS, "float16"),
    "bfloat16": lambda path: folders.write(path, bad.GOOD, bad.TENSORS, "bfloat16"),
    "shards": lambda path: folders.write(path, bad.GOOD, bad.TENSORS, shards=3),
    "tied": lambda path: _write(path, weight_tying=True),
    "one key head": lambda path: _write(path, n_kv_heads=1),
    "as many key heads": lambda path: _write(path, n_kv_heads=4),
    "large vocabulary": lambda path: _write(path, vocab_size=8229, embedding_size=8229),
    "no mask": lambda path: _write(path, mask_token_id=None),
    "shared by its old name": lambda path: _edited(path, 1, n_kv_heads=None, multi_query_attention=True),
    "no embedding_size": lambda path: _edited(path, 2, vocab_size=64, embedding_size=None),
    "values as Python equals them": lambda path: _edited(path, 2, block_group_size=1.0, alibi=0, rope=1, include_qkv_bias=None),
    "escapes": lambda path: _edited(path, 2, note='\u00e9 \U0001f600 "\\/\b\f\n\r\t', rms_norm_eps=1.5e-05, rope_theta=10000),
}


def _write(path: Path, **changes: Any) -> None:
    config = folders.config(**{"n_kv_heads": 2, **changes})
    folders.write(path, config, folders.tensors(config))


def _edited(path: Path, kv_heads: int, **changes: Any) -> None:
    _write(path, n_kv_heads=kv_heads)
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_loads_like_python(kind: str, tmp_path: Path) -> None:
    FOLDERS[kind](tmp_path)
    with LLaDAForCausalLM(tmp_path, num_threads=2) as python, Model(tmp_path) as model:
        c, m = python.config, model.meta
        assert (m.layers, m.d_model, m.heads, m.kv_heads, m.head_dim, m.mlp_hidden, m.vocabulary, m.max_tokens) == (
            c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, c.mlp_hidden_size, c.vocabulary, c.max_sequence_length)
        assert (m.norm_eps, m.rope_theta, bool(m.tied_head)) == (c.rms_norm_eps, c.rope_theta, c.weight_tying)
        assert m.mask_token == (NONE if c.mask_token_id is None else c.mask_token_id)
        assert ["float32", "bfloat16"][m.dtype] == python.dtype and m.weights_dtype == m.dtype
        requests = [PROMPT, [57] * 41, [9]]
        status, logits = model.forward(requests)
        assert status == OK and lib.lladaLastError() == b"" and lib.lladaLastStatus() == OK
        np.testing.assert_array_equal(logits, np.concatenate(python.forward(requests)))
        if c.mask_token_id is None:
            assert model.infer(requests)[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "mask token")


def test_the_published_configuration_is_understood(tmp_path: Path) -> None:
    """LLaDA-8B-Instruct, without its weights: what is complained of are the shards."""
    source = Path(__file__).parent / "data" / "llada-8b-instruct"
    for name in ("config.json", "model.safetensors.index.json"):
        shutil.copy(source / name, tmp_path)
    assert lib.lladaLoadModel(str(tmp_path).encode(), 1) is None
    assert failed(BAD_FILE, r"model-00001-of-0000\d\.safetensors: no such file")


@pytest.mark.parametrize("case", [c for c in bad.CASES if c not in bad.OTHER_FILES], ids=lambda case: case.name)
def test_a_damaged_folder_is_refused_like_in_python(case: bad.Case, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    case.damage(folder)
    refused(folder, BAD_FILE if case.error is ModelFormatError else UNSUPPORTED)


def refused(folder: Path, status: int) -> None:
    assert lib.lladaLoadModel(str(folder).encode(), 1) is None
    assert failed(status, "^" + re.escape(str(folder)))
    assert "\n" not in lib.lladaLastError().decode()


@pytest.mark.parametrize("name", ["ILLaDAForCausalLM", "LLaDAMoEModelLM", "LLaDA2MoeModelLM", "DreamModel"])
def test_architectures_of_python_alone_are_refused(name: str, tmp_path: Path) -> None:
    """A Dream read row by row, for one, would give each position the logits of the next."""
    folder = bad.good(tmp_path / "model")
    bad.edit(architectures=[name])(folder)
    refused(folder, UNSUPPORTED)
    assert failed(UNSUPPORTED, f"architecture {name} is not implemented yet")


@pytest.mark.parametrize("place", bad.PLACES)
def test_truncated_weights(place: str, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    data = (folder / bad.WEIGHTS).read_bytes()
    os.truncate(folder / bad.WEIGHTS, bad.PLACES[place](bad.header_length(data), len(data)))
    refused(folder, BAD_FILE)


def hole(folder: Path) -> None:
    """Four bytes before the last tensor that belong to none."""

    def shift(entries: dict[str, Any]) -> None:
        last = max(entries.values(), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"] = [offset + 4 for offset in last["data_offsets"]]

    bad.after(bad.header(shift), bad.bytes_of_weights(lambda data: data + bytes(4)))(folder)


@pytest.mark.parametrize(("damage", "message"), [
    (hole, r"not a valid safetensors file .*expected a tensor at offset \d+, found one at"),
    (bad.header(bad.swap("shape", [32, 2**57 + 1])), "more elements than 64 bits count"),  # 2^64 + 128 bytes
    (bad.header(lambda entries: entries.update(__metadata__={"format": 7})), "__metadata__"),
    (bad.raw_header(b'{"a": {}, "a": {}}'), "duplicate key 'a'"),
    (bad.header(bad.swap("data_offsets", [0])), "data_offsets: expected two"),
    (bad.mapped("C:x.safetensors"), "expected the name of a .safetensors file in this folder, found 'C:x.safetensors'"),
], ids=["hole", "overflow", "metadata", "duplicate", "one offset", "drive"])
def test_more_damage(damage: bad.Damage, message: str, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    damage(folder)
    refused(folder, BAD_FILE)
    assert failed(BAD_FILE, message)


MALFORMED = {
    "lone surrogate": rb'"\ud800"', "reversed surrogates": rb'"\ude00\ud83d"', "short escape": rb'"\u12"', "odd escape": rb'"\x41"',
    "control character": b'"a\nb"', "overlong": b'"\xc0\xaf"', "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "beyond Unicode": b'"\xf4\x90\x80\x80"',
    "cut character": b'"\xe2\x82"', "leading zero": b"01", "bare minus": b"-", "no fraction": b"1.", "no exponent": b"1e", "plus": b"+1",
    "hexadecimal": b"0x10", "trailing comma": b"[1,]", "comment": b"1 // one", "single quotes": b"'a'", "two values": b"1 2",
    "unknown word": b"nil", "a NUL": b"1\0", "no colon": b'{"a" 1}', "number as key": b"{1: 2}", "unclosed": b'{"a": [1',
    "many values": b"[" + b"1," * (1 << 20) + b"1]",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_json(kind: str, tmp_path: Path) -> None:
    folder = bad.good(tmp_path / "model")
    config = (folder / "config.json").read_bytes().rstrip()
    (folder / "config.json").write_bytes(config[:-1] + b', "note": ' + MALFORMED[kind] + b"}")
    refused(folder, BAD_FILE)


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_never_crashes(seed: int, tmp_path: Path) -> None:
    """Bytes of the headers and of the configuration changed at random: a folder is refused, or loads and computes."""
    rng = np.random.default_rng(seed)
    folder = bad.good(tmp_path / "model", shards=2)
    names = ["config.json", bad.INDEX, *bad.SHARDS]
    originals = {name: (folder / name).read_bytes() for name in names}
    for _ in range(100):
        name = names[rng.integers(len(names))]
        data = bytearray(originals[name])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(min(len(data), 1500))] = rng.integers(256)
        (folder / name).write_bytes(data)
        handle = lib.lladaLoadModel(str(folder).encode(), 1)
        assert lib.lladaLastStatus() == OK if handle else lib.lladaLastStatus() in (BAD_FILE, UNSUPPORTED, OUT_OF_MEMORY)
        if handle:
            with Model(handle=handle) as model:
                model.forward([PROMPT])
        (folder / name).write_bytes(originals[name])


# ---- weights as pointers


def create(config: dict[str, Any], tensors: dict[str, Any], dtype: str = "float32", device: int = 0, ndev: int = 1,
           ids: list[int] | None = None, drop: str = "", tweak: dict[str, Any] | None = None, group_size: int | None = None) -> int | None:
    """createLLaDAModel from named tensors, or createLLaDAModelGrouped for a group size.

    `drop` names a pointer to leave NULL, `tweak` fields of the meta to change.
    """
    kept = {name: np.ascontiguousarray(value.astype(folders.DTYPES[dtype])) for name, value in tensors.items()}
    weights = Weights()
    prefix = "model.transformer."
    for role, leaf in (("embedding", "wte"), ("final_norm", "ln_f"), ("head", "ff_out")):
        if f"{prefix}{leaf}.weight" in kept:
            setattr(weights, role, kept[f"{prefix}{leaf}.weight"].ctypes.data)
    lists = {}
    for role, leaf in LAYER_NAMES.items():
        layers = [kept[f"{prefix}blocks.{i}.{leaf}.weight"].ctypes.data for i in range(config["n_layers"])]
        if drop == f"{role}[1]":
            layers[1] = None
        lists[role] = (ctypes.c_void_p * len(layers))(*layers)
        setattr(weights, role, ctypes.addressof(lists[role]))
    if drop and "[" not in drop:
        setattr(weights, drop, None)
    meta = Meta(dtype=BFLOAT16 if dtype == "bfloat16" else FLOAT32, weights_dtype=DTYPES[dtype], layers=config["n_layers"],
                d_model=config["d_model"], heads=config["n_heads"], kv_heads=config["n_kv_heads"],
                head_dim=config["d_model"] // config["n_heads"], mlp_hidden=config["mlp_hidden_size"], vocabulary=config["embedding_size"],
                max_tokens=512, mask_token=MASK, tied_head=config["weight_tying"], norm_eps=config["rms_norm_eps"],
                rope_theta=config["rope_theta"])
    for key, value in (tweak or {}).items():
        setattr(meta, key, value)
    devices = (ctypes.c_int * len(ids))(*ids) if ids else None
    arguments = ctypes.byref(meta), ctypes.byref(weights), device, ndev, devices
    handle: int | None = (lib.createLLaDAModel(*arguments) if group_size is None else
                          lib.createLLaDAModelGrouped(*arguments, ctypes.c_uint32(group_size)))
    for value in kept.values():
        value.view(np.uint8)[...] = 0xFF  # the model has packed its own copy
    return handle


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_as_pointers_are_the_folder(dtype: str, tied: bool, tmp_path: Path) -> None:
    config = folders.config(n_kv_heads=2, weight_tying=tied)
    tensors = folders.tensors(config)
    folders.write(tmp_path, config, tensors, dtype)
    with Model(tmp_path) as loaded, Model(handle=create(config, tensors, dtype, ids=[0])) as made:
        np.testing.assert_array_equal(made.forward([PROMPT])[1], loaded.forward([PROMPT])[1])


FORMATS = [("float16", 0), *((dtype, group_size) for dtype in ("int8", "int4") for group_size in (32, 64, 128))]


def answer(model: Model, gen_length: int) -> list[int]:
    canvas = np.array([*PROMPT, *[MASK] * gen_length], np.uint32)
    for _ in range(gen_length):
        status, token, position, _ = model.infer([canvas])
        assert status == OK
        canvas[position] = token
    return canvas.tolist()


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("dtype", "group_size"), FORMATS)
def test_every_format_is_that_of_python(dtype: str, group_size: int, tied: bool, stored: str, tmp_path: Path) -> None:
    """From a folder and from pointers: the same logits to the bit and the same tokens. Three groups of 64 in the depth, one not whole."""
    config = folders.config(d_model=144, n_kv_heads=2, weight_tying=tied)
    tensors = folders.tensors(config)
    folders.write(tmp_path, config, tensors, stored)
    requests = [PROMPT, [57] * 41, [9]]
    code, python_group = DTYPES[dtype], {"group_size": group_size} if group_size else {}
    with LLaDAForCausalLM(tmp_path, dtype=dtype, **python_group) as python:
        logits = np.concatenate(python.forward(requests))
        tokens = python.generate(PROMPT, max_steps=12, gen_length=12, block_length=12).sequences[0].tolist()
    loaded = lib.lladaLoadModelAs(str(tmp_path).encode(), 2, code, ctypes.c_uint32(group_size))
    made = create(config, tensors, stored, tweak={"dtype": code}, group_size=group_size)
    for handle in (loaded, made):
        with Model(handle=handle) as model:
            assert model.meta.dtype == code and lib.lladaGroupSize(model.handle) == group_size and lib.lladaLastStatus() == OK
            np.testing.assert_array_equal(model.forward(requests)[1], logits)
            assert answer(model, 12) == tokens


def test_the_default_group_is_pythons(tmp_path: Path) -> None:
    config = folders.config(d_model=144, n_kv_heads=2)
    tensors = folders.tensors(config)
    folders.write(tmp_path, config, tensors)
    with LLaDAForCausalLM(tmp_path, dtype="int4") as python:
        logits = python.forward(PROMPT)
    for handle in (lib.lladaLoadModelAs(str(tmp_path).encode(), 1, INT4, 0), create(config, tensors, tweak={"dtype": INT4}),
                   create(config, tensors, tweak={"dtype": INT4}, group_size=0)):
        with Model(handle=handle) as model:
            assert lib.lladaGroupSize(model.handle) == 64
            np.testing.assert_array_equal(model.forward([PROMPT])[1], logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_loads_as_another_float(dtype: str, tmp_path: Path) -> None:
    folders.write(tmp_path, bad.GOOD, bad.TENSORS, "float16")
    with LLaDAForCausalLM(tmp_path, dtype=dtype) as python, Model(
            handle=lib.lladaLoadModelAs(str(tmp_path).encode(), 1, DTYPES[dtype], 0)) as model:
        assert model.meta.dtype == DTYPES[dtype] and lib.lladaGroupSize(model.handle) == 0
        np.testing.assert_array_equal(model.forward([PROMPT])[1], python.forward(PROMPT))
    assert lib.lladaGroupSize(None) == 0 and failed(INVALID_ARGUMENT, "^model: expected a pointer, found NULL$")


@pytest.mark.parametrize("group_size", [1, 16, 31, 48, 63, 65, 256, NONE])
@pytest.mark.parametrize("dtype", ["int8", "int4", "float32"])
def test_group_sizes_that_are_none(dtype: str, group_size: int, random_folder: Path) -> None:
    message = f"^group_size: expected 32, 64 or 128, or 0 for 64, found {group_size}$"
    assert lib.lladaLoadModelAs(str(random_folder).encode(), 1, DTYPES[dtype], ctypes.c_uint32(group_size)) is None
    assert failed(INVALID_ARGUMENT, message)
    assert create(bad.GOOD, bad.TENSORS, tweak={"dtype": DTYPES[dtype]}, group_size=group_size) is None
    assert failed(INVALID_ARGUMENT, message)


@pytest.mark.parametrize("dtype", [-1, 5, 1 << 30])
def test_dtypes_that_are_none(dtype: int, random_folder: Path) -> None:
    message = f"dtype: expected float32, bfloat16, float16, int8 or int4, found {dtype}$"
    assert lib.lladaLoadModelAs(str(random_folder).encode(), 1, dtype, 0) is None
    assert failed(UNSUPPORTED, f"^{message}")
    assert create(bad.GOOD, bad.TENSORS, tweak={"dtype": dtype}) is None
    assert failed(UNSUPPORTED, rf"^meta\.{message}")


def test_other_arguments_of_loading_in_a_format(random_folder: Path) -> None:
    assert lib.lladaLoadModelAs(None, 1, INT4, 0) is None and failed(INVALID_ARGUMENT, "^folder: expected a pointer, found NULL$")
    assert lib.lladaLoadModelAs(b"/no/such", 1, INT4, 0) is None and failed(BAD_FILE, "^/no/such: .*found nothing$")
    assert lib.lladaLoadModelAs(str(random_folder).encode(), -1, INT4, 0) is None and failed(INVALID_ARGUMENT, "^threads: .*found -1$")


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "role"), [("wte", "embedding"), ("blocks.1.ff_proj", "gate_proj[1]"), ("ff_out", "head")])
def test_a_weight_that_float16_cannot_hold_is_named(name: str, role: str, stored: str, tmp_path: Path) -> None:
    tensor = f"model.transformer.{name}.weight"
    tensors = {**bad.TENSORS, tensor: bad.TENSORS[tensor].copy()}
    tensors[tensor][5, 7] = 70000
    folders.write(tmp_path, bad.GOOD, tensors, stored)
    found = f"expected at most 65504 in magnitude for float16, found {70144 if stored == 'bfloat16' else 70000}; bfloat16 and float32"
    assert lib.lladaLoadModelAs(str(tmp_path).encode(), 2, FLOAT16, 0) is None
    assert failed(INVALID_ARGUMENT, f"^{re.escape(str(tmp_path / bad.WEIGHTS))}: tensor {re.escape(tensor)}: {found}")
    assert create(bad.GOOD, tensors, stored, tweak={"dtype": FLOAT16}) is None
    assert failed(INVALID_ARGUMENT, rf"^weights\.{re.escape(role)}: {found}")
    with Model(tmp_path) as model:
        assert np.isfinite(model.forward([PROMPT])[1]).all()


TOO_LARGE = r"^the weights need 2\d{6}\.\d GiB as float32, and \d+\.\d GiB are available$" if sys.platform == "linux" else "allocation"
BAD_MODELS: dict[str, tuple[dict[str, Any], int, str]] = {
    **{f"device {i}": ({"device": i}, UNSUPPORTED, f"CPU.*{name}") for i, name in enumerate(
        ["NVIDIA", "CAMBRICON", "ASCEND", "METAX", "MOORE", "ILUVATAR", "KUNLUN", "HYGON", "9"], 1)},
    "device -1": ({"device": -1}, UNSUPPORTED, "device.*-1"),
    "two devices": ({"ndev": 2}, INVALID_ARGUMENT, "ndev: expected 1, found 2.*lladaSetThreads"),
    "no device": ({"ndev": 0}, INVALID_ARGUMENT, "ndev: expected 1, found 0"),
    "second processor": ({"ids": [1]}, INVALID_ARGUMENT, r"dev_ids\[0\]"),
    **{f"arrays of {name}": ({"tweak": {"weights_dtype": code}}, UNSUPPORTED,
                             f"meta.weights_dtype: expected float32, bfloat16 or float16, found {name}$")
       for name, code in (("int8", INT8), ("int4", INT4), ("5", 5), ("-1", -1))},
    **{f"no {name}": ({"drop": name}, INVALID_ARGUMENT, rf"weights\.{re.escape(name)}: expected a pointer, found NULL")
       for name in ("embedding", "final_norm", "head", *LAYER_NAMES, "q_proj[1]", "down_proj[1]")},
    "head of a tied model": ({"tweak": {"tied_head": 1}}, INVALID_ARGUMENT, "weights.head: expected NULL"),
    "tied_head 2": ({"tweak": {"tied_head": 2}}, INVALID_ARGUMENT, "meta.tied_head"),
    **{f"{name} 0": ({"tweak": {name: 0}}, INVALID_ARGUMENT, f"meta.{name}: expected 1 to")
       for name in ("layers", "d_model", "heads", "kv_heads", "head_dim", "mlp_hidden", "vocabulary", "max_tokens")},
    "layers 2**32 - 1": ({"tweak": {"layers": NONE}}, INVALID_ARGUMENT, "meta.layers"),
    "heads not a multiple": ({"tweak": {"kv_heads": 3}}, INVALID_ARGUMENT, "kv_heads"),
    "head_dim odd": ({"tweak": {"head_dim": 7}}, INVALID_ARGUMENT, "head_dim.*found 7"),
    "head_dim 258": ({"tweak": {"head_dim": 258}}, INVALID_ARGUMENT, "head_dim.*found 258"),
    "mask beyond": ({"tweak": {"mask_token": 64}}, INVALID_ARGUMENT, "meta.mask_token.*found 64"),
    **{f"{name} {value}": ({"tweak": {name: value}}, INVALID_ARGUMENT, f"meta.{name}.*found")
       for name in ("norm_eps", "rope_theta") for value in (0.0, -1.0, float("nan"), float("inf"))},
    "too large": ({"tweak": {"vocabulary": 1 << 24, "d_model": 1 << 24}}, OUT_OF_MEMORY, TOO_LARGE),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_model_that_cannot_be(kind: str) -> None:
    arguments, status, message = BAD_MODELS[kind]
    assert create(bad.GOOD, bad.TENSORS, **arguments) is None
    assert failed(status, message)


@pytest.mark.skipif(sys.platform != "linux", reason="knows of available memory on Linux only")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("dtype", "group_size"), [("float32", 0), ("bfloat16", 0), *FORMATS])
def test_the_memory_that_weights_need_is_pythons(dtype: str, group_size: int, tied: bool) -> None:
    size = {"d_model": 1 << 20, "n_heads": 1 << 15, "n_kv_heads": 1, "embedding_size": 1 << 23, "n_layers": 2, "mlp_hidden_size": 1 << 20}
    config = folders.config(weight_tying=tied, **size)
    with pytest.raises(ModelMemoryError) as refused:
        LLaDAForCausalLM.random(config, dtype, **({"group_size": group_size} if group_size else {}))
    tensors = {name: value for name, value in bad.TENSORS.items() if not tied or name != "model.transformer.ff_out.weight"}
    assert create(bad.GOOD, tensors, group_size=group_size, tweak={
        "dtype": DTYPES[dtype], "d_model": 1 << 20, "heads": 1 << 15, "kv_heads": 1, "head_dim": 32, "vocabulary": 1 << 23, "layers": 2,
        "mlp_hidden": 1 << 20, "tied_head": tied}) is None
    assert failed(OUT_OF_MEMORY, f"^{str(refused.value).split(', and')[0]}, and .* available$")


# ---- caches


def test_a_cache_from_position_0_changes_nothing(model: Model) -> None:
    requests = [PROMPT, list(range(40))]
    _, plain = model.forward(requests)
    caches = [model.cache(), None]
    for _ in range(2):  # empty, then filled
        status, logits = model.forward(requests, [0, 0], caches)
        assert status == OK
        np.testing.assert_array_equal(logits, plain)
    assert lib.dropKVCache(model.handle, caches[0]) == OK


def test_a_prefix_is_reused(model: Model) -> None:
    """The rows of unchanged tokens come out the same when only they are computed; a cache grows at its end."""
    ids = list(range(50))
    cache = model.cache()
    _, whole = model.forward([ids], None, [cache])
    for begin in (1, 17, 49):
        status, part = model.forward([ids[begin:]], [begin], [cache])
        assert status == OK
        np.testing.assert_array_equal(part, whole[begin:])
    assert model.forward([[1, 2]], [50], [cache])[0] == OK  # extends it
    assert model.forward([[3]], [52], [cache])[0] == OK
    assert model.forward([[3]], [54], [cache])[0] == INVALID_ARGUMENT
    assert failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 53.*found 54")
    assert lib.dropKVCache(model.handle, cache) == OK


@pytest.mark.parametrize("length", [1, 16, 33])
def test_a_truncated_cache_serves_a_shorter_request(length: int, model: Model) -> None:
    """Bit for bit the pass without a cache; what a longer request left would be seen otherwise."""
    longer, shorter = list(range(50)), [7, *range(20, 19 + length)]
    cache = model.cache()
    _, plain = model.forward([shorter])
    for forget in (False, True):
        assert lib.truncateKVCache(cache, 0) == OK
        model.forward([longer], None, [cache])
        if forget:
            assert lib.truncateKVCache(cache, 0) == OK
        status, logits = model.forward([shorter], [0], [cache])
        assert status == OK and np.array_equal(logits, plain) == forget
    assert lib.truncateKVCache(cache, length) == OK, "its length is the request's"
    assert lib.truncateKVCache(cache, length + 1) == INVALID_ARGUMENT
    assert lib.dropKVCache(model.handle, cache) == OK


def test_truncation_undoes_an_extension(model: Model) -> None:
    ids = list(range(50))
    logits = []
    for extended in (False, True):
        cache = model.cache()
        model.forward([ids[:20]], None, [cache])
        if extended:
            model.forward([ids[20:]], [20], [cache])
            assert lib.truncateKVCache(cache, 20) == OK
        replaced, appended = model.forward([[9, 8, 7]], [5], [cache]), model.forward([[6] * 3], [20], [cache])
        assert replaced[0] == appended[0] == OK
        logits.append((replaced[1], appended[1]))
        assert lib.dropKVCache(model.handle, cache) == OK
    np.testing.assert_array_equal(logits[0][0], logits[1][0])
    np.testing.assert_array_equal(logits[0][1], logits[1][1])


def test_truncation_is_checked(model: Model) -> None:
    cache = model.cache()
    assert lib.truncateKVCache(None, 0) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "^cache: .*NULL")
    assert lib.truncateKVCache(cache, 0) == OK and lib.lladaLastError() == b""
    assert lib.truncateKVCache(cache, 1) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "^length: expected 0 to 0, found 1")
    model.forward([PROMPT], None, [cache])
    for length in (6, NONE):
        assert lib.truncateKVCache(cache, length) == INVALID_ARGUMENT
        assert failed(INVALID_ARGUMENT, f"^length: expected 0 to 5, found {length}")
    assert lib.truncateKVCache(cache, 3) == OK
    assert model.forward([[1]], [5], [cache])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 3")
    assert model.forward([[1]], [3], [cache])[0] == OK
    assert lib.dropKVCache(model.handle, cache) == OK


def test_a_changed_end_sees_the_prefix(tmp_path: Path) -> None:
    """In one layer keys depend on their own token only, so that the cached prefix is exact whatever follows it."""
    _write(tmp_path, n_layers=1)
    with Model(tmp_path) as model:
        cache = model.cache()
        model.forward([list(range(30))], None, [cache])
        changed = [*range(20), *range(30, 40)]
        _, whole = model.forward([changed])
        status, part = model.forward([changed[20:]], [20], [cache])
        assert status == OK
        np.testing.assert_array_equal(part, whole[20:])
        canvas = [*range(20), 9, *[MASK] * 9]
        status, *cached = model.infer([canvas[20:]], [20], [cache], ends=[25])
        assert status == OK
        for one, other in zip(cached, model.infer([canvas], ends=[25])[1:], strict=True):
            np.testing.assert_array_equal(one, other)
        assert 21 <= cached[1][0] < 25
        assert lib.dropKVCache(None, cache) == OK


def test_caches_are_checked(model: Model, random_folder: Path) -> None:
    cache = model.cache()
    with Model(random_folder) as other:
        assert other.forward([PROMPT], None, [cache])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"kv_caches\[0\].*another model")
        assert lib.dropKVCache(other.handle, cache) == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, "cache: belongs to another model")
    status, _ = model.forward([PROMPT, PROMPT], None, [cache, cache])
    assert status == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"kv_caches\[1\].*request 0")
    between = model.cache()
    assert model.forward([PROMPT] * 5, None, [None, cache, None, between, cache])[0] == INVALID_ARGUMENT
    assert failed(INVALID_ARGUMENT, r"^kv_caches\[4\]: is also that of request 1$")
    assert lib.dropKVCache(model.handle, between) == OK
    assert model.forward([PROMPT], [1], [cache])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 0")
    assert model.forward([PROMPT], [1])[0] == INVALID_ARGUMENT and failed(INVALID_ARGUMENT, r"req_pos\[0\]: expected 0 to 0")
    assert model.forward([PROMPT], [0], [cache])[0] == OK, "refusals left it empty and whole"
    assert lib.dropKVCache(model.handle, cache) == OK
    assert lib.dropKVCache(model.handle, None) == OK
    assert lib.createKVCache(None) is None and failed(INVALID_ARGUMENT, "model")


# ---- rounds


def test_confidences_are_the_samplers_to_the_bit(tmp_path: Path) -> None:
    """Three vocabulary tiles and more masks than one pass of the head takes."""
    _write(tmp_path, vocab_size=8229, embedding_size=8229)
    with LLaDAForCausalLM(tmp_path) as python, Model(tmp_path) as model:
        result = python.generate(PROMPT, max_steps=40, gen_length=40, block_length=40)
        order = np.argsort(result.commit_step[0])
        canvas = np.array([*PROMPT, *[MASK] * 40], np.uint32)
        for answer_position in order:
            status, token, position, confidence = model.infer([canvas])
            assert status == OK
            assert position[0] == len(PROMPT) + answer_position and confidence[0] == result.confidence[0][answer_position]
            assert token[0] == result.sequences[0][position[0]]
            canvas[position] = token


def test_a_ragged_round(model: Model) -> None:
    """Each request as alone; blocks end where they are told to; no mask, no answer."""
    requests = [[1, MASK, MASK, 2], [3, 4], [MASK], [5, MASK, 6, MASK]]
    status, token, position, confidence = model.infer(requests, ends=[4, 4, 1, 2])
    assert status == OK
    for r, (request, end) in enumerate(zip(requests, [4, 4, 1, 2], strict=True)):
        alone = model.infer([request], ends=[end])
        assert (token[r], position[r], confidence[r]) == (alone[1][0], alone[2][0], alone[3][0])
    assert token[1] == position[1] == NONE and confidence[1] == 0
    assert position[0] in (1, 2) and position[2] == 0 and position[3] == 1
    assert model.infer([[1, MASK]], ends=[1])[2][0] == NONE
    assert model.infer([[1, MASK]], ends=[NONE])[2][0] == 1


def test_the_first_of_equals_wins(tmp_path: Path) -> None:
    """Weights of zero make all logits equal: token 0 at the first mask, confidence 1 / vocabulary."""
    zeros = {name: np.zeros_like(value) for name, value in bad.TENSORS.items()}
    folders.write(tmp_path, bad.GOOD, zeros)
    with Model(tmp_path) as model:
        status, token, position, confidence = model.infer([[1, MASK, MASK]])
        assert (status, token[0], position[0], confidence[0]) == (OK, 0, 1, 1 / 64)
        draws = [model.infer([[1, MASK]], temperature=[1], topk=[3], uniform=np.random.default_rng(i).random)[1][0] for i in range(40)]
        assert set(draws) == {0, 1, 2}


def reference_draw(logits: Any, temperature: float, topk: int, topp: float, uniform: Callable[[], float]) -> tuple[int, float]:
    """The rule of llada.h in NumPy, in the order of its definition."""
    row = logits.astype(np.float64)
    share = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    if temperature == 0:
        return int(row.argmax()), share[row.argmax()]
    kept = np.argsort(-row, kind="stable")[:topk or len(row)]
    if topp < 1:
        heat = np.exp((row[kept] - row[kept[0]]) / temperature)
        kept = kept[:np.searchsorted(np.cumsum(heat) / heat.sum(), np.float64(np.float32(topp))) + 1]
    kept = np.sort(kept)
    noisy = [row[i] - temperature * np.log(-np.log(uniform())) for i in kept]
    token = int(kept[np.argmax(noisy)])
    return token, share[token]


def test_draws_are_the_rule(model: Model) -> None:
    """Random rules over ragged requests: the same stream of numbers gives NumPy's tokens, positions and confidences."""
    rng = np.random.default_rng(5)
    for round_number in range(60):
        requests = [np.where(rng.random(n) < 0.5, MASK, rng.integers(0, 57, n)) for n in rng.integers(1, 40, 3)]
        temperature = np.float32(rng.choice([0, 0.3, 1, 4], 3))
        topk, topp = rng.choice([0, 1, 3, 20, 64, 500], 3), np.float32(rng.choice([1e-6, 0.1, 0.5, 0.9, 1], 3))
        ends = [int(rng.integers(0, len(r) + 2)) for r in requests]
        status, token, position, confidence = model.infer(requests, None, None, temperature, topk, topp, ends,
                                                          np.random.default_rng(round_number).random)
        assert status == OK
        rows, stream = model.forward(requests)[1], np.random.default_rng(round_number).random
        for r, request in enumerate(requests):
            best = (NONE, NONE, 0.0)
            for i, logits in enumerate(rows[sum(map(len, requests[:r])):][:len(request)]):
                if request[i] == MASK and i < ends[r]:
                    drawn, share = reference_draw(logits, float(temperature[r]), int(topk[r]), float(topp[r]), stream)
                    if best[0] == NONE or share > best[2] * (1 + 1e-12):
                        best = (drawn, i, share)
            assert (token[r], position[r]) == best[:2]
            assert confidence[r] == pytest.approx(best[2], rel=1e-12)


@pytest.mark.parametrize(("temperature", "topk", "topp"), [(0.5, 0, 1), (2, 0, 1), (1, 5, 1), (1, 0, 0.6)])
def test_draws_follow_the_distribution(temperature: float, topk: int, topp: float, model: Model) -> None:
    request = [7, 8, MASK]
    row = model.forward([request])[1][2].astype(np.float64) / temperature
    share = np.exp(row - row.max())
    ranked = np.argsort(-share, kind="stable")
    if topk:
        share[ranked[topk:]] = 0
    if topp < 1:
        share[ranked[np.searchsorted(np.cumsum(share[ranked]) / share.sum(), np.float64(np.float32(topp))) + 1:]] = 0
    share /= share.sum()
    counts = np.zeros(64, int)
    uniform = np.random.default_rng(1).random
    for _ in range(100):
        status, token, *_ = model.infer([request] * 50, temperature=[temperature] * 50, topk=[topk] * 50, topp=[topp] * 50, uniform=uniform)
        assert status == OK
        np.add.at(counts, token, 1)
    assert counts[share == 0].sum() == 0 and np.all(counts[share > 0.01] > 0)
    common = share * counts.sum() >= 5
    observed, expected = np.append(counts[common], counts[~common].sum()), np.append(share[common], share[~common].sum()) * counts.sum()
    kept = expected > 0
    assert chisquare(observed[kept], expected[kept]).pvalue > 1e-3


def test_a_uniform_of_zero_is_allowed(model: Model) -> None:
    status, token, *_ = model.infer([[1, MASK]], temperature=[1], topk=[1], uniform=lambda: 0.0)
    assert status == OK and token[0] == model.infer([[1, MASK]])[1][0]


# ---- errors


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


def test_threads(model: Model, random_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in (1, 2, 3):
        assert lib.lladaSetThreads(model.handle, threads) == OK and lib.lladaThreads(model.handle) == threads
        results.append(model.forward([PROMPT, list(range(30))])[1])
    assert all(np.array_equal(results[0], r) for r in results)
    assert lib.lladaSetThreads(model.handle, 1025) == INVALID_ARGUMENT and lib.lladaThreads(model.handle) == 3
    assert lib.lladaLoadModel(str(random_folder).encode(), -1) is None and failed(INVALID_ARGUMENT, "threads.*-1")
    with Model(random_folder, 0) as automatic:
        assert lib.lladaThreads(automatic.handle) == llada_native.cpu_info()["num_threads"]


@pytest.mark.parametrize(("value", "threads"), [("3", 3), ("", None), ("0", None), ("two", None), ("1025", None), ("3 4", None)])
def test_threads_of_the_environment(value: str, threads: int | None, random_folder: Path) -> None:
    code = ("import ctypes, sys; lib = ctypes.CDLL(sys.argv[1]); lib.lladaLoadModel.restype = ctypes.c_void_p;"
            "model = ctypes.c_void_p(lib.lladaLoadModel(sys.argv[2].encode(), 0)); print(lib.lladaLastStatus(), lib.lladaThreads(model))")
    done = subprocess.run([sys.executable, "-c", code, get_library(), str(random_folder)], capture_output=True, text=True,
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
    before, files = bad.resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        fail()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    assert bad.resident() - before < 8 << 20
    assert lib.dropKVCache(model.handle, cache) == OK
