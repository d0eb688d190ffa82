"""Weights through the C interface: as pointers, and in every format."""
from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

import bad_folders as bad
import folders
import numpy as np
import pytest
from c_api import (
    BAD_FILE,
    DTYPES,
    FLOAT16,
    INT4,
    INT8,
    INVALID_ARGUMENT,
    LAYER_NAMES,
    MASK,
    NONE,
    OK,
    OUT_OF_MEMORY,
    PROMPT,
    UNSUPPORTED,
    Model,
    create,
    failed,
    lib,
)

from llada_native import LLaDAForCausalLM, ModelMemoryError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_as_pointers_are_the_folder(dtype: str, tied: bool, tmp_path: Path) -> None:
    config = folders.config(n_kv_heads=2, weight_tying=tied)
    tensors = folders.tensors(config)
    folders.write(tmp_path, config, tensors, dtype)
    with Model(tmp_path) as loaded, Model(handle=create(config, tensors, dtype, ids=[0])) as made:
        np.testing.assert_array_equal(made.forward([PROMPT])[1], loaded.forward([PROMPT])[1])


FORMATS = [("float16", 0), ("bfloat16_fast", 0), *((dtype, group_size) for dtype in ("int8", "int4") for group_size in (32, 64, 128))]


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
def test_group_sizes_that_are_none(dtype: str, group_size: int, tiny: Any) -> None:
    message = f"^group_size: expected 32, 64 or 128, or 0 for 64, found {group_size}$"
    assert lib.lladaLoadModelAs(str(tiny[0]).encode(), 1, DTYPES[dtype], ctypes.c_uint32(group_size)) is None
    assert failed(INVALID_ARGUMENT, message)
    assert create(bad.GOOD, bad.TENSORS, tweak={"dtype": DTYPES[dtype]}, group_size=group_size) is None
    assert failed(INVALID_ARGUMENT, message)


@pytest.mark.parametrize("dtype", [-1, 6, 1 << 30])
def test_dtypes_that_are_none(dtype: int, tiny: Any) -> None:
    message = f"dtype: expected float32, bfloat16, float16, int8, int4 or bfloat16_fast, found {dtype}$"
    assert lib.lladaLoadModelAs(str(tiny[0]).encode(), 1, dtype, 0) is None
    assert failed(UNSUPPORTED, f"^{message}")
    assert create(bad.GOOD, bad.TENSORS, tweak={"dtype": dtype}) is None
    assert failed(UNSUPPORTED, rf"^meta\.{message}")


def test_other_arguments_of_loading_in_a_format(tiny: Any) -> None:
    assert lib.lladaLoadModelAs(None, 1, INT4, 0) is None and failed(INVALID_ARGUMENT, "^folder: expected a pointer, found NULL$")
    assert lib.lladaLoadModelAs(b"/no/such", 1, INT4, 0) is None and failed(BAD_FILE, "^/no/such: .*found nothing$")
    assert lib.lladaLoadModelAs(str(tiny[0]).encode(), -1, INT4, 0) is None and failed(INVALID_ARGUMENT, "^threads: .*found -1$")


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


@pytest.mark.parametrize(("dtype", "kind", "most"), [(INT4, "int4", 524032), (INT8, "int8", 8319008)])
def test_a_weight_whose_scale_float16_cannot_hold_is_named(dtype: int, kind: str, most: int, tmp_path: Path) -> None:
    tensor = "model.transformer.blocks.1.ff_proj.weight"
    tensors = {**bad.TENSORS, tensor: bad.TENSORS[tensor].copy()}
    tensors[tensor][5, 7] = -most - 1
    folders.write(tmp_path, bad.GOOD, tensors, "float32")
    found = f"expected at most {most} in magnitude for {kind}, found {-most - 1}; bfloat16 and float32"
    assert lib.lladaLoadModelAs(str(tmp_path).encode(), 2, dtype, 0) is None
    assert failed(INVALID_ARGUMENT, f"^{re.escape(str(tmp_path / bad.WEIGHTS))}: tensor {re.escape(tensor)}: {found}")
    assert create(bad.GOOD, tensors, "float32", tweak={"dtype": dtype}) is None
    assert failed(INVALID_ARGUMENT, rf"^weights\.gate_proj\[1\]: {found}")


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
       for name, code in (("int8", INT8), ("int4", INT4), ("bfloat16_fast", 5), ("6", 6), ("-1", -1))},
    **{f"no {name}": ({"drop": name}, INVALID_ARGUMENT, rf"weights\.{re.escape(name)}: expected a pointer, found NULL")
       for name in ("embedding", "final_norm", "head", *LAYER_NAMES, "q_proj[1]", "down_proj[1]")},
    "head of a tied model": ({"tweak": {"tied_head": 1}}, INVALID_ARGUMENT, "weights.head: expected NULL"),
    "tied_head 2": ({"tweak": {"tied_head": 2}}, INVALID_ARGUMENT, "meta.tied_head"),
    **{f"{name} 0": ({"tweak": {name: 0}}, INVALID_ARGUMENT, f"meta.{name}: expected 1 to")
       for name in ("layers", "d_model", "heads", "kv_heads", "head_dim", "mlp_hidden", "vocabulary", "max_tokens")},
    "layers 2**32 - 1": ({"tweak": {"layers": NONE}}, INVALID_ARGUMENT, "meta.layers"),
    "heads not a multiple": ({"tweak": {"kv_heads": 3}}, INVALID_ARGUMENT,
                             r"meta.kv_heads: expected a divisor of meta.heads \(4\), found 3"),
    "head_dim odd": ({"tweak": {"head_dim": 7}}, INVALID_ARGUMENT, "head_dim.*found 7"),
    "head_dim 258": ({"tweak": {"head_dim": 258}}, INVALID_ARGUMENT, "meta.head_dim: expected 1 to 256, found 258"),
    "head_dim 2**24": ({"tweak": {"head_dim": 1 << 24}}, INVALID_ARGUMENT, "meta.head_dim: expected 1 to 256, found 16777216"),
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
