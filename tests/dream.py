"""Small Dream checkpoints with random weights, and a float64 forward with biases and shifted logits straight from their published names.

Neither shares code with the package. The forward takes one mistake by name (`mutation`), so that tests can show that each would be
seen.
"""
from __future__ import annotations

import folders
import numpy as np
import oracle

MASK, EOS = 58, 57


def config(**changes):
    """A config.json of two layers and grouped queries."""
    return {"architectures": ["DreamModel"], "model_type": "Dream", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 512, "max_window_layers": 28,
            "rope_theta": 1000000.0, "rope_scaling": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu",
            "sliding_window": None, "use_sliding_window": False, "attention_dropout": 0.0, "use_cache": True, "mask_token_id": MASK,
            "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS, "torch_dtype": "float32", **changes}


def shapes(c):
    """Published name and [out, in] shape of every tensor."""
    d, mlp, kv = c["hidden_size"], c["intermediate_size"], c["num_key_value_heads"] * c["hidden_size"] // c["num_attention_heads"]
    named = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        named |= {f"{layer}.{leaf}.weight": shape for leaf, shape in {
            "input_layernorm": (d,), "post_attention_layernorm": (d,), "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d), "mlp.gate_proj": (mlp, d), "mlp.up_proj": (mlp, d),
            "mlp.down_proj": (d, mlp)}.items()}
        named |= {f"{layer}.self_attn.{part}_proj.bias": (width,) for part, width in (("q", d), ("k", kv), ("v", kv))}
    return named if c["tie_word_embeddings"] else named | {"lm_head.weight": (c["vocab_size"], d)}


def tensors(c, seed=0):
    """Random float32 weights: matrices N(0, 1/columns), norms U(0.5, 1.5), biases N(0, 1/4)."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes(c).items():
        if name.endswith("bias"):
            found[name] = rng.normal(0, 0.5, shape).astype(np.float32)
        else:
            found[name] = (rng.normal(0, shape[-1]**-0.5, shape) if len(shape) == 2 else rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    return found


def forward(tensors, c, ids, mutation=None):
    """Logits float64 [len(ids), vocabulary], those of a row its position's."""
    w = {name: np.asarray(t, np.float64) for name, t in tensors.items()}
    n, d, heads, kv_heads = len(ids), c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    hd = d // heads

    def rms(x, weight):
        return oracle.rms_norm(x, weight, c["rms_norm_eps"])

    cos, sin = oracle.rotary(n, hd, c["rope_theta"])

    def rope(x):
        return oracle.rotate(x, cos, sin)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = rms(x, w[f"{layer}.input_layernorm.weight"])
        bias = {part: w[f"{layer}.self_attn.{part}_proj.bias"] for part in "qkv"}
        if mutation == "no bias":
            bias = {part: 0 * b for part, b in bias.items()}
        if mutation in ("no bias of queries", "no bias of keys", "no bias of values"):
            bias[mutation[11]] = 0 * bias[mutation[11]]
        if mutation == "biases of keys and values swapped":
            bias["k"], bias["v"] = bias["v"], bias["k"]
        if mutation == "bias in the last layer only" and i < c["num_hidden_layers"] - 1:
            bias = {part: 0 * b for part, b in bias.items()}
        plain = {part: (h @ w[f"{layer}.self_attn.{part}_proj.weight"].T) for part in "qkv"}
        q, k, v = ((plain[part] + bias[part]).reshape(n, -1, hd) for part in "qkv")
        q, k = rope(q), rope(k)
        if mutation == "bias after rope":
            q, k = (rope(plain[part].reshape(n, -1, hd)) + bias[part].reshape(-1, hd) for part in "qk")
        out = np.empty((n, heads, hd))
        for head in range(heads):
            kv = head % kv_heads if mutation == "interleaved kv heads" else head // (heads // kv_heads)
            s = q[:, head] @ k[:, kv].T / np.sqrt(hd)
            if mutation == "causal":
                s = np.where(np.tri(n, dtype=bool), s, -np.inf)
            out[:, head] = oracle.softmax(s) @ v[:, kv]
        x = x + out.reshape(n, -1) @ w[f"{layer}.self_attn.o_proj.weight"].T
        h = rms(x, w[f"{layer}.post_attention_layernorm.weight"])
        gate = h @ w[f"{layer}.mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[f"{layer}.mlp.up_proj.weight"].T)) @ w[f"{layer}.mlp.down_proj.weight"].T
    logits = rms(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
    if mutation == "no shift":
        return logits
    if mutation == "shift the other way":
        return np.concatenate([logits[1:], logits[-1:]])
    if mutation == "shift around the end":
        return np.roll(logits, 1, axis=0)
    return np.concatenate([logits[:1], logits[:-1]])


def written(folder, c, seed=0, dtype="float32", shards=1):
    found = tensors(c, seed)
    return folders.write(folder, c, found, dtype, shards), found


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 57, n)
