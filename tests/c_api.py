"""libllada through ctypes: its functions, models that close, and ways to say what a call returned."""
from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest

from llada_native.library import get_library

OK, INVALID_ARGUMENT, OUT_OF_MEMORY, UNSUPPORTED, BAD_FILE, NOT_FINITE = range(6)
FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, BFLOAT16_FAST = range(6)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16, "int8": INT8, "int4": INT4, "bfloat16_fast": BFLOAT16_FAST}
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


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


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
