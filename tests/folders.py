"""Small LLaDA checkpoint folders with random weights, written without the package: its names and shapes are spelled out here."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def config(**changes: Any) -> dict[str, Any]:
    """A config.json of a two-layer model, with keys changed or added."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 32,
        "embedding_dropout": 0.0,
        "embedding_size": 64,
        "eos_token_id": 57,
        "eot_token_id": 59,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": 58,
        "max_sequence_length": 512,
        "mlp_hidden_size": 48,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "pad_token_id": 57,
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 10000.0,
        "scale_logits": False,
        "use_cache": False,
        "vocab_size": 60,
        "weight_tying": False,
        "torch_dtype": "float32",
        **changes,
    }


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Published name and [out, in] shape of every tensor."""
    d, mlp, vocabulary = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    kv = config["n_kv_heads"] * (d // config["n_heads"])
    named: dict[str, tuple[int, ...]] = {"model.transformer.wte.weight": (vocabulary, d)}
    for i in range(config["n_layers"]):
        block = f"model.transformer.blocks.{i}"
        named |= {
            f"{block}.attn_norm.weight": (d,),
            f"{block}.q_proj.weight": (d, d),
            f"{block}.k_proj.weight": (kv, d),
            f"{block}.v_proj.weight": (kv, d),
            f"{block}.attn_out.weight": (d, d),
            f"{block}.ff_norm.weight": (d,),
            f"{block}.ff_proj.weight": (mlp, d),
            f"{block}.up_proj.weight": (mlp, d),
            f"{block}.ff_out.weight": (d, mlp),
        }
    named["model.transformer.ln_f.weight"] = (d,)
    if not config["weight_tying"]:
        named["model.transformer.ff_out.weight"] = (vocabulary, d)
    return named


def tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random float32 weights: matrices N(0, 0.1), norms U(0.7, 1.3)."""
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(0, 0.1, shape) if len(shape) == 2 else rng.uniform(0.7, 1.3, shape)).astype(np.float32)
            for name, shape in shapes(config).items()}


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], dtype: str = "float32",
          shards: int = 1) -> Path:
    """Write config.json and the weights as model.safetensors, or as shards with an index. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}, indent=2))
    stored = {name: np.ascontiguousarray(value.astype(DTYPES[dtype])) for name, value in tensors.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
        return folder
    names = list(stored)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        save_file({name: stored[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(value.nbytes for value in stored.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def random(folder: Path, **changes: Any) -> Path:
    """Write a folder of a random model with grouped queries."""
    c = config(**{"n_kv_heads": 2, **changes})
    return write(folder, c, tensors(c))
