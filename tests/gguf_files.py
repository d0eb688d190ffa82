"""GGUF files of small random models, written with the gguf package's writer. Names and row orders are spelled out here."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folders
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from llada_native.checkpoint import Checkpoint, tensor_name
from llada_native.model import DEMO

FLOATS = ("F32", "F16", "BF16")
SIMPLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
K_TYPES = ("Q4_K", "Q5_K", "Q6_K")
TYPES = (*FLOATS, *SIMPLE, *K_TYPES)
# Of a block of random bytes: where its float16 scales lie, and what makes weights of about 0.1 of them.
SCALES = {"Q8_0": ((0,), 2**-10), "Q4_0": ((0,), 2**-6), "Q4_1": ((0, 2), 2**-7), "Q5_0": ((0,), 2**-7), "Q5_1": ((0, 2), 2**-8),
          "Q4_K": ((0, 2), 2**-13), "Q5_K": ((0, 2), 2**-14), "Q6_K": ((208,), 2**-15)}

LLADA = {"model.transformer.wte.weight": "token_embd.weight", "model.transformer.ln_f.weight": "output_norm.weight",
         "model.transformer.ff_out.weight": "output.weight"}
LLADA_LAYER = {"attn_norm": "attn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "attn_out": "attn_output",
               "ff_norm": "ffn_norm", "ff_proj": "ffn_gate", "up_proj": "ffn_up", "ff_out": "ffn_down"}


def config(**changes: Any) -> dict[str, Any]:
    """A config.json whose rows are whole blocks of every type."""
    return folders.config(**{"d_model": 256, "mlp_hidden_size": 256, "n_kv_heads": 2, "vocab_size": 64, **changes})


def name_of(published: str) -> str:
    if published in LLADA:
        return LLADA[published]
    layer, leaf = published.removeprefix("model.transformer.blocks.").removesuffix(".weight").split(".")
    return f"blk.{layer}.{LLADA_LAYER[leaf]}.weight"


def random_blocks(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of a quantised type: random bytes, with scales that make sense."""
    elements, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    places, spread = SCALES[kind]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), np.uint8)
    for at in places:
        scales = (spread * rng.uniform(0.2, 1, blocks.shape[:-1]) * rng.choice([-1, 1], blocks.shape[:-1])).astype(np.float16)
        blocks[..., at:at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def encode(kind: str, values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[Any]:
    """A tensor as a file stores it: quantised where the package can, random blocks of K types."""
    if kind in K_TYPES:
        return random_blocks(kind, values.shape, rng)
    return np.asarray(gguf.quants.quantize(values, Type[kind]))


def decode(kind: str, stored: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(gguf.quants.dequantize(stored, Type[kind]))


def adjacent_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """llama.cpp's order of the rows of q_proj and k_proj: the halves of a head interleaved."""
    return np.ascontiguousarray(rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape))


def writer(path: Path, arch: str, config: Mapping[str, Any], skip: tuple[str, ...] = ()) -> gguf.GGUFWriter:
    """A writer with the keys of a dense model, as both programs write them."""
    w = gguf.GGUFWriter(path, arch)
    numbers = {"block_count": config["n_layers"], "context_length": config["max_sequence_length"], "embedding_length": config["d_model"],
               "feed_forward_length": config["mlp_hidden_size"], "attention.head_count": config["n_heads"],
               "attention.head_count_kv": config["n_kv_heads"], "vocab_size": config["vocab_size"]}
    if arch != "diffuse":
        numbers["rope.dimension_count"] = config["d_model"] // config["n_heads"]
        w.add_bool(f"{arch}.attention.causal", False)
        w.add_bool("diffusion.shift_logits", arch == "dream")
        w.add_uint32("tokenizer.ggml.mask_token_id", config["mask_token_id"])
        w.add_uint32("tokenizer.ggml.eos_token_id", config["eos_token_id"])
    else:
        w.add_uint32("diffuse.mask_token_id", config["mask_token_id"])
        w.add_string("diffuse.model_type", "llada")
    for key, value in numbers.items():
        if key not in skip:
            w.add_uint32(f"{arch}.{key}", value)
    w.add_float32(f"{arch}.rope.freq_base", config["rope_theta"])
    w.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    return w


def finish(w: gguf.GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def add(w: gguf.GGUFWriter, name: str, stored: NDArray[Any], kind: str) -> None:
    w.add_tensor(name, stored, raw_dtype=None if kind in ("F32", "F16") else Type[kind])


def write(path: Path, kinds: str | Mapping[str, str], arch: str = "llada", config: Mapping[str, Any] | None = None,
          seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A dense model with matrices of a type, or of types by the ends of their names. Returns what a folder of its values would hold."""
    c = config if config is not None else globals()["config"]()
    rng, w, values = np.random.default_rng(seed), writer(path, arch, c), {}
    for name, tensor in folders.tensors(c, seed).items():
        target = name_of(name)
        kind = "F32" if tensor.ndim == 1 else kinds if isinstance(kinds, str) else next(
            kind for end, kind in kinds.items() if target.endswith(end))
        stored = encode(kind, tensor, rng)
        values[name] = decode(kind, stored)
        heads = {"attn_q": c["n_heads"], "attn_k": c["n_kv_heads"]}.get(target.split(".")[-2])
        add(w, target, adjacent_pairs(stored, heads) if arch == "llada" and heads else stored, kind)
    finish(w)
    return values


def pair(folder: Path, kinds: str | Mapping[str, str], arch: str = "llada", config: Mapping[str, Any] | None = None,
         dtype: str = "float32", seed: int = 0) -> tuple[Path, Path]:
    """A GGUF file, and a checkpoint folder of the same values."""
    c = config if config is not None else globals()["config"]()
    folder.mkdir(exist_ok=True)
    path = folder / f"{arch}.gguf"
    values = write(path, kinds, arch, c, seed)
    unstated = ("eot_token_id", *(("eos_token_id",) if arch == "diffuse" else ()))
    return path, folders.write(folder / "folder", {key: value for key, value in c.items() if key not in unstated}, values, dtype)


def demo_file(path: Path, add_bos_token: bool = True, pre: str | None = "bailingmoe2", **changes: Any) -> Path:
    """The demo model, with the keys of a tokenizer as llama.cpp writes them."""
    c = json.loads((DEMO / "config.json").read_text())
    tokenizer, options = (json.loads((DEMO / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    texts = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    special = {each["id"]: each["content"] for each in tokenizer["added_tokens"]}
    w = writer(path, "llada", c)
    keys = {"model": "gpt2", "pre": pre, "tokens": [texts.get(i, special.get(i, f"[PAD{i}]")) for i in range(c["vocab_size"])],
            "token_type": [3 if i in special else 1 if i in texts else 5 for i in range(c["vocab_size"])],
            "merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]], "bos_token_id": 506, "padding_token_id": 507,
            "add_bos_token": add_bos_token, **changes}
    for key, value in keys.items():
        put = {str: w.add_string, bool: w.add_bool, int: w.add_uint32, list: w.add_array, float: w.add_float32}.get(type(value))
        if put:
            put(f"tokenizer.ggml.{key}", value)
    w.add_chat_template(options["chat_template"])
    checkpoint = Checkpoint(DEMO)
    for spec, _, rows in checkpoint.slices():
        name = name_of(tensor_name(spec))
        stored = adjacent_pairs(rows, 4) if spec.role in ("q_proj", "k_proj") else rows
        kind = "F32" if rows.ndim == 1 else "BF16"
        add(w, name, stored.astype(np.float32) if kind == "F32" else np.ascontiguousarray(stored).view(np.uint8), kind)
    finish(w)
    return path
