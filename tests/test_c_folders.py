"""Folders through the C interface: read as Python reads them, and refused as Python refuses them."""
from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_folders as bad
import folders
import numpy as np
import pytest
from c_api import BAD_FILE, INVALID_ARGUMENT, NONE, OK, OUT_OF_MEMORY, PROMPT, UNSUPPORTED, Model, failed, lib

from llada_native import LLaDAForCausalLM, ModelFormatError


def edited(path: Path, kv_heads: int, **changes: Any) -> None:
    config = folders.random(path, n_kv_heads=kv_heads) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


FOLDERS: dict[str, Callable[[Path], object]] = {
    "float32": lambda path: folders.write(path, bad.GOOD, bad.TENSORS),
    "float16": lambda path: folders.write(path, bad.GOOD, bad.TENSORS, "float16"),
    "bfloat16": lambda path: folders.write(path, bad.GOOD, bad.TENSORS, "bfloat16"),
    "shards": lambda path: folders.write(path, bad.GOOD, bad.TENSORS, shards=3),
    "tied": lambda path: folders.random(path, weight_tying=True),
    "one key head": lambda path: folders.random(path, n_kv_heads=1),
    "as many key heads": lambda path: folders.random(path, n_kv_heads=4),
    "large vocabulary": lambda path: folders.random(path, vocab_size=8229, embedding_size=8229),
    "no mask": lambda path: folders.random(path, mask_token_id=None),
    "shared by its old name": lambda path: edited(path, 1, n_kv_heads=None, multi_query_attention=True),
    "no embedding_size": lambda path: edited(path, 2, vocab_size=64, embedding_size=None),
    "values as Python equals them": lambda path: edited(path, 2, block_group_size=1.0, alibi=0, rope=1, include_qkv_bias=None),
    "escapes": lambda path: edited(path, 2, note='\u00e9 \U0001f600 "\\/\b\f\n\r\t', rms_norm_eps=1.5e-05, rope_theta=10000),
}


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
