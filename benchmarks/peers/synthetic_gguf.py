"""A GGUF model of LLaDA-8B's shape with random weights and few layers, for llama.cpp: its `llama` architecture has the same matrices."""
from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

D_MODEL, HEADS, MLP, VOCABULARY, CONTEXT = 4096, 32, 12288, 512, 1024
SEED_VALUES = 1_000_003  # random numbers, repeated: drawing all of them takes longer than the benchmark


def write(path: Path, layers: int) -> None:
    """Float16 weights; `llama_model_quantize` makes the other formats of it."""
    values = (np.random.default_rng(0).standard_normal(SEED_VALUES) / 64).astype(np.float16)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D_MODEL // HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, np.resize(values, (rows, columns)))

    matrix("token_embd.weight", VOCABULARY, D_MODEL)
    for i in range(layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(D_MODEL, np.float32))
        for name in ("q", "k", "v", "output"):
            matrix(f"blk.{i}.attn_{name}.weight", D_MODEL, D_MODEL)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", np.ones(D_MODEL, np.float32))
        matrix(f"blk.{i}.ffn_gate.weight", MLP, D_MODEL)
        matrix(f"blk.{i}.ffn_up.weight", MLP, D_MODEL)
        matrix(f"blk.{i}.ffn_down.weight", D_MODEL, MLP)
    writer.add_tensor("output_norm.weight", np.ones(D_MODEL, np.float32))
    matrix("output.weight", VOCABULARY, D_MODEL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
