"""Small LLaDA-MoE checkpoints with random weights, and a float64 forward straight from their published names.

Neither shares code with the package. The forward takes one mistake by name (`mutation`), so that tests can show that each would be
seen.
"""
from __future__ import annotations

import folders
import numpy as np
import oracle

MASK = 61


def config(**changes):
    """A config.json of three layers, the second of which is dense."""
    return {"architectures": ["LLaDAMoEModelLM"], "model_type": "llada", "hidden_size": 32, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts": 8, "num_experts_per_tok": 2, "expert_intermediate_size": 24,
            "dense_intermediate_size": 48, "shared_expert_intermediate_size": None, "moe_layer_freq": [1, 0, 1], "qk_layernorm": True,
            "vocab_size": 64, "max_position_embeddings": 512, "rope_theta": 50000, "rms_norm_eps": 1e-5, "partial_rotary_factor": 1,
            "tie_word_embeddings": False, "hidden_act": "silu", "mask_token_id": MASK, "eos_token_id": 60, "pad_token_id": 60,
            "torch_dtype": "float32", **changes}


def shapes(c):
    """Published name and [out, in] shape of every tensor."""
    d, hd = c["hidden_size"], c["hidden_size"] // c["num_attention_heads"]
    kv = c["num_key_value_heads"] * hd

    def mlp(prefix, hidden):
        return {f"{prefix}.{leaf}.weight": shape
                for leaf, shape in (("gate_proj", (hidden, d)), ("up_proj", (hidden, d)), ("down_proj", (d, hidden)))}

    named = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,), "lm_head.weight": (c["vocab_size"], d)}
    for i, kind in enumerate(c["moe_layer_freq"]):
        layer = f"model.layers.{i}"
        named |= {f"{layer}.input_layernorm.weight": (d,), f"{layer}.post_attention_layernorm.weight": (d,),
                  f"{layer}.self_attn.q_proj.weight": (d, d), f"{layer}.self_attn.k_proj.weight": (kv, d),
                  f"{layer}.self_attn.v_proj.weight": (kv, d), f"{layer}.self_attn.o_proj.weight": (d, d),
                  f"{layer}.self_attn.q_norm.weight": (hd,), f"{layer}.self_attn.k_norm.weight": (hd,)}
        if kind == 0:
            named |= mlp(f"{layer}.mlp", c["dense_intermediate_size"])
            continue
        named[f"{layer}.mlp.gate.weight"] = (c["num_experts"], d)
        for e in range(c["num_experts"]):
            named |= mlp(f"{layer}.mlp.experts.{e}", c["expert_intermediate_size"])
    return named


def tensors(c, seed=0):
    """Random float32 weights, large enough that it matters which experts a row goes to."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes(c).items():
        spread = (2 if name.endswith("mlp.gate.weight") else 1) / np.sqrt(shape[-1])
        found[name] = (rng.normal(0, spread, shape) if len(shape) == 2 else rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    return found


def forward(tensors, c, ids, mutation=None, routes=None):
    """Logits float64 [len(ids), vocabulary] of one sequence. `routes` collects [layers with experts] of chosen ids [len(ids), top]."""
    w = {name: np.asarray(t, np.float64) for name, t in tensors.items()}
    n, d, heads, kv_heads = len(ids), c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    hd, experts, top = d // heads, c["num_experts"], c["num_experts_per_tok"]

    def rms(x, weight):
        return oracle.rms_norm(x, weight, c["rms_norm_eps"])

    cos, sin = oracle.rotary(n, hd, c["rope_theta"])

    def rope(x):
        return oracle.rotate(x, cos, sin)

    def normed(x, weight):  # [n, heads, hd]
        if mutation == "no query and key norm":
            return rope(x)
        if mutation == "norm after rope":
            return rms(rope(x), weight)
        if mutation == "norm over the whole width":
            return rope(rms(x.reshape(n, -1), np.tile(weight, x.shape[1])).reshape(x.shape))
        return rope(rms(x, weight))

    def gated(h, prefix):
        gate, up = h @ w[f"{prefix}.gate_proj.weight"].T, h @ w[f"{prefix}.up_proj.weight"].T
        if mutation == "experts' gate and up swapped" and ".experts." in prefix:
            gate, up = up, gate
        return (gate / (1 + np.exp(-gate)) * up) @ w[f"{prefix}.down_proj.weight"].T

    x = w["model.embed_tokens.weight"][ids]
    for i, kind in enumerate(c["moe_layer_freq"]):
        layer = f"model.layers.{i}"
        attn = f"{layer}.self_attn"
        h = rms(x, w[f"{layer}.input_layernorm.weight"])
        q, k, v = ((h @ w[f"{attn}.{p}_proj.weight"].T).reshape(n, -1, hd) for p in "qkv")
        q, k = normed(q, w[f"{attn}.q_norm.weight"]), normed(k, w[f"{attn}.k_norm.weight"])
        out = np.empty((n, heads, hd))
        for head in range(heads):
            kv = head // (heads // kv_heads)
            out[:, head] = oracle.softmax(q[:, head] @ k[:, kv].T / np.sqrt(hd)) @ v[:, kv]
        x = x + out.reshape(n, -1) @ w[f"{attn}.o_proj.weight"].T
        h = rms(x, w[f"{layer}.post_attention_layernorm.weight"])
        if kind == 0:
            x = x if mutation == "dense layer ignored" else x + gated(h, f"{layer}.mlp")
            continue
        logits = h @ w[f"{layer}.mlp.gate.weight"].T
        if mutation == "router bias":
            logits = logits + np.linspace(-0.5, 0.5, experts)
        scores = 1 / (1 + np.exp(-logits)) if mutation == "sigmoid router" else oracle.softmax(logits)
        order = np.argsort(-scores, -1, kind="stable")
        chosen = order[:, 1:top + 1] if mutation == "second best" else order[:, :top]
        weight = np.take_along_axis(scores, chosen, -1)
        if mutation == "renormalised weights":
            weight = weight / weight.sum(-1, keepdims=True)
        if mutation == "softmax after top-k":
            weight = oracle.softmax(np.take_along_axis(logits, chosen, -1))
        if routes is not None:
            routes.append(np.sort(chosen, -1))
        mixed = np.zeros_like(x)
        for row in range(n):
            for expert, share in zip(chosen[row], weight[row], strict=True):
                mixed[row] += share * gated(h[row], f"{layer}.mlp.experts.{expert}")
        x = x + mixed
    return rms(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def written(folder, c, seed=0, dtype="float32", shards=1):
    found = tensors(c, seed)
    return folders.write(folder, c, found, dtype, shards), found


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 60, n)
