"""GGUF files of other families: mixtures of experts, and Dream."""
from dataclasses import replace

import folders
import gguf
import gguf_files
import moe
import numpy as np
import pytest

from llada_native import LLaDAForCausalLM, ModelFormatError

IDS = np.arange(40) * 7 % 57


def moe_file(path, c, tensors, kind="F32"):
    w = gguf.GGUFWriter(path, "llada-moe")
    for key, value in (("block_count", "num_hidden_layers"), ("context_length", "max_position_embeddings"),
                       ("embedding_length", "hidden_size"), ("attention.head_count", "num_attention_heads"),
                       ("attention.head_count_kv", "num_key_value_heads"),
                       ("expert_count", "num_experts"), ("expert_used_count", "num_experts_per_tok"),
                       ("expert_feed_forward_length", "expert_intermediate_size")):
        w.add_uint32(f"llada-moe.{key}", c[value])
    w.add_float32("llada-moe.rope.freq_base", c["rope_theta"])
    w.add_float32("llada-moe.attention.layer_norm_rms_epsilon", c["rms_norm_eps"])
    w.add_bool("llada-moe.attention.causal", False)
    w.add_bool("diffusion.shift_logits", False)
    w.add_uint32("tokenizer.ggml.mask_token_id", c["mask_token_id"])
    rng, values = np.random.default_rng(0), {}

    def put(target, published):
        both = [tensors[name] for name in published]
        simple = both[0].ndim == 1 or target.endswith("ffn_gate_inp.weight")
        stored = [gguf_files.encode("F32" if simple else kind, t, rng) for t in both]
        values.update((name, gguf_files.decode("F32" if simple else kind, s)) for name, s in zip(published, stored, strict=True))
        gguf_files.add(w, target, np.stack(stored) if ".experts." in published[0] else stored[0], "F32" if simple else kind)

    for target, published in (("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")):
        put(f"{target}.weight", [f"{published}.weight"])
    for i in range(c["num_hidden_layers"]):
        for target, leaf in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attn_q", "self_attn.q_proj"),
                             ("attn_k", "self_attn.k_proj"), ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"),
                             ("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm"), ("ffn_gate_inp", "mlp.gate")):
            put(f"blk.{i}.{target}.weight", [f"model.layers.{i}.{leaf}.weight"])
        for part in ("gate", "up", "down"):
            put(f"blk.{i}.ffn_{part}_exps.weight",
                [f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight" for e in range(c["num_experts"])])
    gguf_files.finish(w)
    return values


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_mixtures_of_experts(tmp_path, kind):
    c = moe.config(hidden_size=64, expert_intermediate_size=32, moe_layer_freq=[1, 1], num_hidden_layers=2, num_key_value_heads=2)
    values = moe_file(tmp_path / "moe.gguf", c, moe.tensors(c), kind)
    folder = folders.write(tmp_path / "folder", c, values)
    one, other = LLaDAForCausalLM(tmp_path / "moe.gguf", dtype="float32"), LLaDAForCausalLM(folder, dtype="float32")
    ids = moe.ids_of(33)
    assert np.array_equal(one.forward(ids), other.forward(ids))
    assert one.config.n_experts == c["num_experts"] and one.config.mask_token_id == c["mask_token_id"]
    if kind != "F32":
        small = LLaDAForCausalLM(tmp_path / "moe.gguf")
        assert small.dtype == {"Q8_0": "int8", "Q4_0": "int4"}[kind] and np.isfinite(small.forward(ids)).all()


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_experts": 4095}, r"llada-moe.expert_count: expected as many as have tensors \(8\), found 4095"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok: expected at most num_experts"),
    ({"expert_intermediate_size": 64}, r"blk.0.ffn_gate_exps.weight: expected shape \(8, 64, 64\), found \(8, 32, 64\)"),
])
def test_experts_that_do_not_fit(tmp_path, changes, message, monkeypatch):
    c = moe.config(hidden_size=64, expert_intermediate_size=32, moe_layer_freq=[1, 1], num_hidden_layers=2, num_experts=8)
    tensors, write = moe.tensors(c), gguf.GGUFWriter.add_uint32
    keys = {"llada-moe.expert_count": "num_experts", "llada-moe.expert_used_count": "num_experts_per_tok",
            "llada-moe.expert_feed_forward_length": "expert_intermediate_size"}
    monkeypatch.setattr(gguf.GGUFWriter, "add_uint32", lambda w, key, value: write(w, key, changes.get(keys.get(key), value)))
    moe_file(tmp_path / "moe.gguf", c, tensors)
    with pytest.raises(ModelFormatError, match=message):
        LLaDAForCausalLM(tmp_path / "moe.gguf")


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_dream(tmp_path, kind):
    """Llama's tensors in the order of the folder, and biases of queries, keys and values."""
    c = {"architectures": ["DreamModel"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
         "intermediate_size": 96, "vocab_size": 64, "max_position_embeddings": 512, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
         "tie_word_embeddings": False, "hidden_act": "silu", "mask_token_id": 58, "eos_token_id": 57}
    alike = folders.config(d_model=64, n_kv_heads=2, mlp_hidden_size=96, vocab_size=64, rope_theta=1e6, rms_norm_eps=1e-6)
    rng, w, values = np.random.default_rng(0), gguf_files.writer(tmp_path / "dream.gguf", "dream", alike), {}
    leaves = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
              "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
              "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "token_embd": "embed_tokens", "output_norm": "norm"}
    tensors = {gguf_files.name_of(name): tensor for name, tensor in folders.tensors(alike).items()}
    tensors |= {f"blk.{i}.attn_{part}.bias": rng.normal(0, 1, 64 if part == "q" else 32).astype(np.float32)
                for i in range(2) for part in "qkv"}
    for name, tensor in tensors.items():
        *block, leaf, what = name.split(".")
        published = "lm_head" if leaf == "output" else f"model.layers.{block[1]}.{leaves[leaf]}" if block else f"model.{leaves[leaf]}"
        stored = gguf_files.encode("F32" if tensor.ndim == 1 else kind, tensor, rng)
        values[f"{published}.{what}"] = gguf_files.decode("F32" if tensor.ndim == 1 else kind, stored)
        gguf_files.add(w, name, stored, "F32" if tensor.ndim == 1 else kind)
    gguf_files.finish(w)
    folder = folders.write(tmp_path / "folder", c, values)
    one, other = LLaDAForCausalLM(tmp_path / "dream.gguf", dtype="float32"), LLaDAForCausalLM(folder, dtype="float32")
    assert np.array_equal(one.forward(IDS), other.forward(IDS)) and one.config == replace(other.config, dtype=None)
