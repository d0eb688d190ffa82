"""Checkpoint folders with one thing damaged, and what is said of each."""
from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folders
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llada_native import LladaError, ModelFormatError, UnsupportedModelError

Damage = Callable[[Path], None]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
GOOD = folders.config(n_kv_heads=2)
TENSORS = folders.tensors(GOOD)
BLOCK = "model.transformer.blocks.0."
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0123456789abcdef" * 4 + b"\nsize 16033441792\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>429 Too Many Requests</title></head><body></body></html>"


def good(folder: Path, shards: int = 1) -> Path:
    return folders.write(folder, GOOD, TENSORS, shards=shards)


# ---- ways to damage a folder


def put(name: str, data: bytes | str) -> Damage:
    """Replace or add a file."""
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def directory_instead_of(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def edit(**changes: Any) -> Damage:
    """Change keys of config.json."""
    return lambda folder: (folder / "config.json").write_text(json.dumps(GOOD | changes))


def without(key: str) -> Damage:
    """Remove a key of config.json."""
    return lambda folder: (folder / "config.json").write_text(json.dumps({k: v for k, v in GOOD.items() if k != key}))


def literal(key: str, text: str) -> Damage:
    """Write a value of config.json that json.dumps would not."""
    return lambda folder: (folder / "config.json").write_text(
        json.dumps(GOOD | {key: "PLACE"}).replace('"PLACE"', text))


def header_length(data: bytes) -> int:
    return int(struct.unpack("<Q", data[:8])[0])


def bytes_of_weights(change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the JSON header of the weights and leave their data as it is."""

    def rewrite(data: bytes) -> bytes:
        end = 8 + header_length(data)
        entries = json.loads(data[8:end])
        change(entries)
        text = json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + data[end:]

    return bytes_of_weights(rewrite)


def raw_header(text: bytes) -> Damage:
    return put(WEIGHTS, struct.pack("<Q", len(text)) + text)


def tensors(**changes: Any) -> Damage:
    """Replace tensors of the first block (None drops one)."""
    named = {f"{BLOCK}{key}.weight": value for key, value in changes.items()}
    return lambda folder: save_file({k: v for k, v in (TENSORS | named).items() if v is not None}, folder / WEIGHTS)


def index(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Shard the folder and change its index."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        good(folder, shards=2)
        path = folder / INDEX
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return damage


def mapped(shard: object) -> Damage:
    """Send one tensor of the index elsewhere."""
    return index(lambda value: value["weight_map"].update({f"{BLOCK}q_proj.weight": shard}))


def after(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def with_tokenizer(damage: Damage) -> Damage:
    """Add a tokenizer of one word before the damage."""
    return after(put("tokenizer.json", Tokenizer(WordLevel({"word": 0}, unk_token="word")).to_str()), damage)


# ---- the table


@dataclass(frozen=True)
class Case:
    """One malformed folder; `message` is a regular expression over what follows the folder in the message."""

    name: str
    damage: Damage
    message: str
    error: type[LladaError] = ModelFormatError


def found(key: str, value: str, expected: str = r"\S.*") -> str:
    """config.json's key, what was expected of it, and what was found."""
    return rf"config\.json: {key}\b.*expected {expected}, found {re.escape(value)}$"


DIMENSIONS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size", "embedding_size",
              "max_sequence_length")
NOT_DIMENSIONS = {"zero": 0, "negative": -4, "float": 32.0, "huge": 10**10, "beyond 64 bits": 10**30, "string": "32",
                  "boolean": True, "list": [32]}
NOT_POSITIVE = {"zero": "0", "negative": "-1e-5", "string": '"1e-5"', "boolean": "true", "null": "null", "1e400": "1e400",
                "10**400": "1" + 400 * "0"}
REQUIRED = ("n_layers", "d_model", "n_heads", "mlp_hidden_size", "vocab_size", "max_sequence_length", "rope_theta",
            "rms_norm_eps", "weight_tying", "block_type", "layer_norm_type", "activation_type", "rope")
REFUSED = (
    ("block_type", "sequential"), ("block_group_size", 2), ("layer_norm_type", "default"), ("layer_norm_type", "gemma_rms"),
    ("layer_norm_with_affine", False), ("activation_type", "gelu"), ("activation_type", "swiglu"), ("alibi", True),
    ("attention_layer_norm", True), ("include_bias", True), ("include_qkv_bias", True), ("bias_for_layer_norm", True),
    ("input_emb_norm", True), ("scale_logits", True), ("rope", False), ("rope_full_precision", False),
    ("partial_rotary_factor", 0.5), ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("quantization_config", {"quant_method": "gptq", "bits": 4}),
)

CONFIG_FILES = [
    Case("config missing", remove("config.json"), r"config\.json: no such file"),
    Case("config is a directory", directory_instead_of("config.json"), r"config\.json: no such file"),
    Case("config empty", put("config.json", ""), r"config\.json: not valid JSON"),
    Case("config not JSON", put("config.json", "d_model = 32\n"), r"config\.json: not valid JSON.*line 1 column 1"),
    Case("config cut short", put("config.json", json.dumps(GOOD)[:-20]), r"config\.json: not valid JSON"),
    Case("config with a byte order mark", put("config.json", b"\xef\xbb\xbf" + json.dumps(GOOD).encode()),
         r"config\.json: not valid JSON.*BOM"),
    Case("config is a web page", put("config.json", HTML), r"config\.json: .*web page"),
    Case("config is an LFS pointer", put("config.json", LFS), r"config\.json: .*Git LFS pointer.*git lfs pull"),
    Case("config with NaN", literal("rms_norm_eps", "NaN"), r"config\.json: NaN .*expected a finite number"),
    Case("config with Infinity", literal("rope_theta", "Infinity"), r"config\.json: Infinity .*expected a finite number"),
    Case("config with -Infinity", literal("pad_token_id", "-Infinity"), r"config\.json: -Infinity .*expected a finite number"),
    Case("config with a number of 5000 digits", literal("pad_token_id", "9" * 5000),
         r"config\.json: not valid JSON.*5000 digits"),
    Case("config with a duplicate key", put("config.json", json.dumps(GOOD)[:-1] + ', "d_model": 64}'),
         r"config\.json: duplicate key 'd_model'"),
    Case("config with a nested duplicate key", literal("auto_map", '{"a": 1, "a": 2}'), r"config\.json: duplicate key 'a'"),
    Case("config is a list", put("config.json", "[" + json.dumps(GOOD) + "]"),
         r"config\.json: expected a JSON object, found list"),
    Case("config is a string", put("config.json", '"LLaDAModelLM"'), r"config\.json: expected a JSON object, found str"),
    Case("config is null", put("config.json", "null"), r"config\.json: expected a JSON object, found NoneType"),
    Case("config not UTF-8", put("config.json", b'{"architectures": ["LLaDA\xff"]}'),
         r"config\.json: expected UTF-8 text, found byte 0xff at offset 25"),
    Case("config in UTF-16", put("config.json", json.dumps(GOOD).encode("utf-16-le")), r"config\.json: .*(UTF-8|not valid JSON)"),
    Case("config nested deeply", literal("auto_map", "[" * 100_000 + "]" * 100_000), r"config\.json: nested too deeply"),
]

CONFIG_VALUES = [
    Case("architectures missing", without("architectures"), found("architectures", "None", "a list.*")),
    Case("architectures empty", edit(architectures=[]), found("architectures", "[]", "a list.*")),
    Case("architectures a string", edit(architectures="LLaDAModelLM"), found("architectures", "'LLaDAModelLM'", "a list.*")),
    Case("architectures of numbers", edit(architectures=[7]), found("architectures", "[7]", "a list.*")),
    Case("architecture unknown", edit(architectures=["LlamaForCausalLM"]),
         r"config\.json: unknown architecture 'LlamaForCausalLM'.*LLaDAModelLM, .*LLaDA2MoeModelLM, DreamModel$", UnsupportedModelError),
    *(Case(f"{key} missing", without(key), rf"config\.json: .*required.*'{key}'.*missing") for key in REQUIRED),
    *(Case(f"{key} {kind}", edit(**{key: value}), found(key, repr(value), r"a whole number from 1 to \d+"))
      for key in DIMENSIONS for kind, value in NOT_DIMENSIONS.items()),
    *(Case(f"{key} null", edit(**{key: None}), found(key, "None")) for key in ("n_layers", "d_model", "n_heads", "vocab_size")),
    *(Case(f"{key} {kind}", literal(key, text), rf"config\.json: {key}: expected \S.*, found ")
      for key in ("rms_norm_eps", "rope_theta") for kind, text in NOT_POSITIVE.items()),
    *(Case(f"{key} 1e300", literal(key, "1e300"), rf"config\.json: {key}: expected (?!a positive finite number,).*found 1e\+300$")
      for key in ("rms_norm_eps", "rope_theta")),
    *(Case(f"weight_tying {value!r}", edit(weight_tying=value), found("weight_tying", repr(value), "true or false"))
      for value in (0, "false", None)),
    *(Case(f"{key} {value!r}", edit(**{key: value}), found(key, repr(value), "a token id from 0 to 63"))
      for key in ("mask_token_id", "eos_token_id", "eot_token_id") for value in (64, -1, 58.0, "58", True, 10**30)),
    Case("d_model not divisible", edit(d_model=34), found("d_model", "34", r"a multiple of n_heads \(4\)")),
    Case("n_kv_heads not dividing", edit(n_kv_heads=3), found("n_kv_heads", "3", r"a divisor of n_heads \(4\)")),
    Case("more n_kv_heads than heads", edit(n_kv_heads=8), found("n_kv_heads", "8", r"a divisor of n_heads \(4\)")),
    Case("head_dim odd", edit(d_model=36), found("d_model / n_heads", "9", "an even number up to 256")),
    Case("head_dim too large", edit(d_model=4 * 258), found("d_model / n_heads", "258", "an even number up to 256")),
    *(Case(f"head_dim {value!r}", edit(head_dim=value), found("head_dim", repr(value), r"d_model / n_heads \(8\)"))
      for value in (16, 7.5, "llama")),
    Case("embedding smaller than the vocabulary", edit(embedding_size=59),
         found("embedding_size", "59", r"at least vocab_size \(60\)")),
    Case("rope_parameters a list", edit(rope_parameters=[1]), found("rope_parameters", r"[1]", "an object")),
    Case("rope_parameters of another base", edit(rope_parameters={"rope_theta": 7.0}),
         found("rope_parameters.rope_theta", "7.0", r"rope_theta \(10000.0\)")),
    *(Case(f"rope_parameters {key}", edit(rope_parameters={key: value}),
           rf"config\.json: (rope_parameters\.)?{key} = .* is not supported: expected ", UnsupportedModelError)
      for key, value in {"rope_type": "yarn", "factor": 4, "partial_rotary_factor": 0.5}.items()),
    *(Case(f"{key} {value!r}", edit(**{key: value}),
           rf"config\.json: {key} = {re.escape(repr(value))} is not supported: expected \S", UnsupportedModelError)
      for key, value in REFUSED),
]


def swap(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Set one field of the header entry of the first norm."""
    return lambda entries: entries[f"{BLOCK}attn_norm.weight"].update({key: value})


def overlap(entries: dict[str, Any]) -> None:
    norms = [f"{BLOCK}{name}.weight" for name in ("attn_norm", "ff_norm")]
    entries[norms[0]]["data_offsets"] = entries[norms[1]]["data_offsets"]


def reverse(entries: dict[str, Any]) -> None:
    entries[f"{BLOCK}attn_norm.weight"]["data_offsets"].reverse()


def beyond(entries: dict[str, Any]) -> None:
    last = max(entries.values(), key=lambda entry: entry["data_offsets"][1])
    last["data_offsets"][1] += 4
    last["shape"] = [last["shape"][0] + 1, *last["shape"][1:]]


INVALID = r"model\.safetensors: not a valid safetensors file \(\d+ bytes\): \S"
HEAD = "model.transformer.ff_out.weight"

WEIGHT_FILES = [
    Case("no weights", remove(WEIGHTS), r"expected model\.safetensors or model\.safetensors\.index\.json, found neither"),
    Case("weights in another format", after(remove(WEIGHTS), put("pytorch_model.bin", b"PK\x03\x04")),
         r"expected model\.safetensors or model\.safetensors\.index\.json, found neither"),
    Case("weights a directory", directory_instead_of(WEIGHTS), r"expected model\.safetensors or .*, found neither"),
    Case("weights empty", put(WEIGHTS, b""), r"model\.safetensors: not a valid safetensors file \(0 bytes\)"),
    Case("weights an LFS pointer", put(WEIGHTS, LFS), r"model\.safetensors: .*Git LFS pointer.*git lfs pull"),
    Case("weights a web page", put(WEIGHTS, HTML), r"model\.safetensors: .*web page"),
    Case("weights noise", put(WEIGHTS, np.random.default_rng(0).bytes(4096)), INVALID),
    Case("header length 2**63", bytes_of_weights(lambda data: struct.pack("<Q", 1 << 63) + data[8:]), INVALID),
    Case("header length 2**64 - 1", bytes_of_weights(lambda data: b"\xff" * 8 + data[8:]), INVALID),
    Case("header length 0", bytes_of_weights(lambda data: bytes(8) + data[8:]), INVALID),
    Case("header length 8 too small", bytes_of_weights(lambda data: struct.pack("<Q", header_length(data) - 8) + data[8:]),
         INVALID),
    Case("header length 8 too large", bytes_of_weights(lambda data: struct.pack("<Q", header_length(data) + 8) + data[8:]),
         INVALID),
    Case("header not JSON", raw_header(b"weights go here "), INVALID),
    Case("header a list", raw_header(b"[1, 2, 3]"), INVALID),
    Case("header not UTF-8", raw_header(b'{"\xff": 1}'), INVALID),
    Case("header nested deeply", raw_header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), INVALID),
    Case("offsets overlap", header(overlap), INVALID),
    Case("offsets reversed", header(reverse), INVALID),
    Case("offsets beyond the end", header(beyond), INVALID),
    Case("offsets negative", header(swap("data_offsets", [-128, 0])), INVALID),
    Case("bytes that belong to no tensor", bytes_of_weights(lambda data: data + b"\0"), INVALID),
    Case("shape that does not fit its bytes", header(swap("shape", [33])), INVALID),
    Case("shape that overflows", header(swap("shape", [1 << 62, 1 << 62])), INVALID),
    Case("shape negative", header(swap("shape", [-32])), INVALID),
    Case("dtype unheard of", header(swap("dtype", "F31")), INVALID),
    Case("tensor missing", tensors(q_proj=None), rf"model\.safetensors: .*config\.json: 1 missing \({BLOCK}q_proj\.weight\)"),
    Case("tensor unexpected", tensors(q_bias=np.zeros(32, np.float32)),
         rf"model\.safetensors: .*1 unexpected \({BLOCK}q_bias\.weight\)"),
    Case("tensor misnamed", tensors(attn_out=None, o_proj=TENSORS[f"{BLOCK}attn_out.weight"]),
         rf"1 missing \({BLOCK}attn_out\.weight\); 1 unexpected \({BLOCK}o_proj\.weight\)"),
    Case("a layer too few", edit(n_layers=3), r"model\.safetensors: .*9 missing \(model\.transformer\.blocks\.2\."),
    Case("a layer too many", edit(n_layers=1), r"model\.safetensors: .*9 unexpected \(model\.transformer\.blocks\.1\."),
    Case("head of a tied model", edit(weight_tying=True), rf"model\.safetensors: .*1 unexpected \({HEAD}\)"),
    Case("no head of an untied model",
         lambda folder: save_file({k: v for k, v in TENSORS.items() if k != HEAD}, folder / WEIGHTS),
         rf"model\.safetensors: .*1 missing \({HEAD}\)"),
    Case("no tensors at all", lambda folder: save_file({}, folder / WEIGHTS), r"model\.safetensors: .*21 missing \("),
    Case("shape wrong", tensors(q_proj=np.zeros((32, 31), np.float32)),
         rf"1 tensor.*{BLOCK}q_proj\.weight: expected shape \(32, 32\), found \(32, 31\)"),
    Case("matrix transposed", tensors(ff_out=np.ascontiguousarray(TENSORS[f"{BLOCK}ff_out.weight"].T)),
         rf"1 tensor.*{BLOCK}ff_out\.weight: expected shape \(32, 48\), found \(48, 32\)"),
    Case("keys of all heads", tensors(k_proj=np.zeros((32, 32), np.float32)),
         rf"1 tensor.*{BLOCK}k_proj\.weight: expected shape \(16, 32\), found \(32, 32\)"),
    Case("norm a scalar", tensors(attn_norm=np.array(1, np.float32)),
         rf"1 tensor.*{BLOCK}attn_norm\.weight: expected shape \(32,\), found \(\)"),
    Case("norm a matrix", tensors(attn_norm=np.ones((1, 32), np.float32)),
         rf"1 tensor.*{BLOCK}attn_norm\.weight: expected shape \(32,\), found \(1, 32\)"),
    Case("matrix without columns", tensors(up_proj=np.zeros((48, 0), np.float32)),
         rf"1 tensor.*{BLOCK}up_proj\.weight: expected shape \(48, 32\), found \(48, 0\)"),
    Case("every shape wrong", edit(mlp_hidden_size=40),
         rf"6 tensor.*{BLOCK}ff_out\.weight: expected shape \(32, 40\), found \(32, 48\);.*blocks\.1\.up_proj"),
    *(Case(f"dtype {np.dtype(dtype).name}", tensors(up_proj=TENSORS[f"{BLOCK}up_proj.weight"].astype(dtype)),
           rf"model\.safetensors: tensor {BLOCK}up_proj\.weight: expected dtype F32, F16 or BF16, found {name}$",
           UnsupportedModelError)
      for dtype, name in ((np.float64, "F64"), (np.int64, "I64"), (np.int8, "I8"), (np.bool_, "BOOL"))),
    *(Case(f"dtype {name}", header(swap("dtype", name)),
           rf"model\.safetensors: tensor {BLOCK}attn_norm\.weight: expected .*, found {name}$", UnsupportedModelError)
      for name in ("I32", "U32")),
]

NOT_A_SHARD = r"model\.safetensors\.index\.json: tensor \S+q_proj\.weight: expected \S.*found "

INDEX_FILES = [
    *(Case(f"index leads to {shard!r}", mapped(shard), NOT_A_SHARD + re.escape(repr(shard)) + "$")
      for shard in ("../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "./x.safetensors", "..\\x.safetensors",
                    "C:\\x.safetensors", "", ".", "..", "weights.bin", "model-00001-of-00002.pt", 7, None, ["x.safetensors"])),
    Case("index leads to a missing file", mapped("model-00003-of-00003.safetensors"),
         r"model-00003-of-00003\.safetensors: no such file"),
    Case("index leads to a name with a NUL", mapped("x\0.safetensors"), r"x(\0|\\x00)\.safetensors"),
    Case("index leads to a name of 300 characters", mapped("x" * 300 + ".safetensors"), r"x{300}\.safetensors"),
    Case("shard missing", after(index(lambda value: None), remove(SHARDS[1])), rf"{SHARDS[1]}: no such file"),
    Case("shard is a web page", after(index(lambda value: None), put(SHARDS[0], HTML)), rf"{SHARDS[0]}: .*web page"),
    Case("shard is an LFS pointer", after(index(lambda value: None), put(SHARDS[1], LFS)), rf"{SHARDS[1]}: .*Git LFS pointer"),
    Case("shard cut short", after(index(lambda value: None), lambda folder: os.truncate(folder / SHARDS[1], 2000)),
         rf"{SHARDS[1]}: not a valid safetensors file \(2000 bytes\)"),
    Case("index maps a tensor to the wrong shard", mapped(SHARDS[1]),
         rf"{SHARDS[0]}: .*1 not in the index \({BLOCK}q_proj\.weight\)"),
    Case("index swaps the shards", after(index(lambda value: None), lambda folder: swap_files(folder, *SHARDS)),
         rf"{SHARDS[0]}: .*missing \(.*not in the index \("),
    Case("index forgets a tensor", index(lambda value: value["weight_map"].pop(HEAD)),
         rf"index\.json: .*config\.json: 1 missing \({HEAD}\)"),
    Case("index invents a tensor", index(lambda value: value["weight_map"].update({"lm_head.weight": SHARDS[0]})),
         r"index\.json: .*config\.json: 1 unexpected \(lm_head\.weight\)"),
    Case("index without weight_map", index(lambda value: value.pop("weight_map")),
         r"index\.json: weight_map: expected an object, found NoneType"),
    Case("index with a list", index(lambda value: value.update(weight_map=[1])),
         r"index\.json: weight_map: expected an object, found list"),
    Case("index with no tensors", index(lambda value: value.update(weight_map={})),
         r"index\.json: .*config\.json: 21 missing \("),
    Case("index not JSON", put(INDEX, "{"), r"index\.json: not valid JSON"),
    Case("index an LFS pointer", put(INDEX, LFS), r"index\.json: .*Git LFS pointer"),
    Case("index a web page", put(INDEX, HTML), r"index\.json: .*web page"),
    Case("index a list", put(INDEX, "[]"), r"index\.json: expected a JSON object, found list"),
]

OTHER_FILES = [
    Case("tokenizer malformed", put("tokenizer.json", '{"version": "1.0"'), r"tokenizer\.json: not a valid tokenizer: \S"),
    Case("tokenizer without a model", put("tokenizer.json", '{"version": "1.0"}'), r"tokenizer\.json: not a valid tokenizer: \S"),
    Case("tokenizer empty", put("tokenizer.json", ""), r"tokenizer\.json: not a valid tokenizer: \S"),
    Case("tokenizer not UTF-8", put("tokenizer.json", b"\xff\xfe{}"), r"tokenizer\.json: not a valid tokenizer: \S"),
    Case("tokenizer a web page", put("tokenizer.json", HTML), r"tokenizer\.json: .*web page"),
    Case("tokenizer an LFS pointer", put("tokenizer.json", LFS), r"tokenizer\.json: .*Git LFS pointer"),
    Case("tokenizer_config not JSON", with_tokenizer(put("tokenizer_config.json", "{]")),
         r"tokenizer_config\.json: not valid JSON"),
    Case("tokenizer_config without tokenizer, not JSON", after(without("eot_token_id"), put("tokenizer_config.json", "{]")),
         r"tokenizer_config\.json: not valid JSON"),
    Case("tokenizer_config with an end of turn beyond the vocabulary",
         after(without("eot_token_id"),
               put("tokenizer_config.json", '{"added_tokens_decoder": {"64": {"content": "<|eot_id|>"}}}')),
         r"tokenizer_config\.json: .*64"),
    Case("chat_template a number", with_tokenizer(put("tokenizer_config.json", '{"chat_template": 7}')),
         r"tokenizer_config\.json: chat_template: expected text, found int"),
    Case("chat_template of that name a number",
         with_tokenizer(put("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": 7}]}')),
         r"tokenizer_config\.json: chat_template: expected text, found int"),
    Case("chat_template.jinja not UTF-8", with_tokenizer(put("chat_template.jinja", b"{{ '\xff' }}")),
         r"chat_template\.jinja: cannot be read"),
    *(Case(f"{key} {value!r}", put("generation_config.json", json.dumps({key: value})),
           rf"generation_config\.json: {key}: expected a positive whole number, found {re.escape(repr(value))}$")
      for key in ("gen_length", "block_length") for value in ("a", 0, -1, 1.5, True, [8])),
    Case("generation_config not JSON", put("generation_config.json", "gen_length: 8"),
         r"generation_config\.json: not valid JSON"),
    Case("generation_config a list", put("generation_config.json", "[8]"),
         r"generation_config\.json: expected a JSON object, found list"),
]


def swap_files(folder: Path, first: str, second: str) -> None:
    data = (folder / first).read_bytes(), (folder / second).read_bytes()
    (folder / first).write_bytes(data[1])
    (folder / second).write_bytes(data[0])


CASES = CONFIG_FILES + CONFIG_VALUES + WEIGHT_FILES + INDEX_FILES + OTHER_FILES

# Where a file of weights is cut short: (length of its header, its size) -> what is left.
PLACES: dict[str, Callable[[int, int], int]] = {
    "nothing left": lambda header, size: 0,
    "one byte": lambda header, size: 1,
    "within the length": lambda header, size: 7,
    "after the length": lambda header, size: 8,
    "one byte of the header": lambda header, size: 9,
    "within the header": lambda header, size: 8 + header // 2,
    "the header but one byte": lambda header, size: 7 + header,
    "after the header": lambda header, size: 8 + header,
    "one byte of the data": lambda header, size: 9 + header,
    "within the data": lambda header, size: (8 + header + size) // 2,
    "without the last number": lambda header, size: size - 4,
    "without the last byte": lambda header, size: size - 1,
}
