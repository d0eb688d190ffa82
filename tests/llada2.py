"""Small LLaDA2 checkpoints with random weights, and a float64 forward straight from their published names.

Neither shares code with the package. The forward takes one mistake by name (`mutation`), so that tests can show that each would be
seen.
"""
from __future__ import annotations

import folders
import numpy as np
import oracle

MASK = 61
BLOCK = 32
LEAST_GAP = 1e-4  # between the scores of an expert that is chosen and one that is not: float32 then chooses as float64 does


def config(**changes):
    """A config.json of three layers, the first of which is dense."""
    return {"architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "hidden_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 24,
            "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
            "norm_topk_prob": True, "routed_scaling_factor": 2.5, "score_function": "sigmoid", "router_dtype": "fp32",
            "moe_router_enable_expert_bias": True, "use_qk_norm": True, "use_bias": False, "use_qkv_bias": False, "norm_head": False,
            "partial_rotary_factor": 0.5, "rope_theta": 600000, "rope_scaling": None, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "use_sliding_window": False, "sliding_window": 4096, "tie_word_embeddings": False, "max_position_embeddings": 512,
            "vocab_size": 64, "mask_token_id": MASK, "eos_token_id": 60, "pad_token_id": 60, "torch_dtype": "float32", **changes}


def shapes(c):
    """Published name and [out, in] shape of every tensor."""
    d, hd, heads = c["hidden_size"], c["head_dim"], c["num_attention_heads"]

    def mlp(prefix, hidden):
        return {f"{prefix}.{leaf}.weight": shape
                for leaf, shape in (("gate_proj", (hidden, d)), ("up_proj", (hidden, d)), ("down_proj", (d, hidden)))}

    named = {"model.word_embeddings.weight": (c["vocab_size"], d), "model.norm.weight": (d,), "lm_head.weight": (c["vocab_size"], d)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        named |= {f"{layer}.input_layernorm.weight": (d,), f"{layer}.post_attention_layernorm.weight": (d,),
                  f"{layer}.attention.query_key_value.weight": ((heads + 2 * c["num_key_value_heads"]) * hd, d),
                  f"{layer}.attention.query_layernorm.weight": (hd,), f"{layer}.attention.key_layernorm.weight": (hd,),
                  f"{layer}.attention.dense.weight": (d, heads * hd)}
        if i < c["first_k_dense_replace"]:
            named |= mlp(f"{layer}.mlp", c["intermediate_size"])
            continue
        named |= {f"{layer}.mlp.gate.weight": (c["num_experts"], d), f"{layer}.mlp.gate.expert_bias": (c["num_experts"],)}
        for e in range(c["num_experts"]):
            named |= mlp(f"{layer}.mlp.experts.{e}", c["moe_intermediate_size"])
        if c["num_shared_experts"]:
            named |= mlp(f"{layer}.mlp.shared_experts", c["num_shared_experts"] * c["moe_intermediate_size"])
    return named


def tensors(c, seed=0):
    """Random float32 weights: matrices N(0, 0.1), norms U(0.7, 1.3), biases of routers N(0, 0.1)."""
    rng = np.random.default_rng(seed)
    return {name: (rng.uniform(0.7, 1.3, shape) if name.endswith("norm.weight") else rng.normal(0, 0.1, shape)).astype(np.float32)
            for name, shape in shapes(c).items()}


def stacked(c, tensors):
    """The tensors with those of all experts of a layer as one, [experts, out, in]."""
    found = {name: t for name, t in tensors.items() if ".experts." not in name}
    for i in range(c["first_k_dense_replace"], c["num_hidden_layers"]):
        prefix = f"model.layers.{i}.mlp.experts"
        found |= {f"{prefix}.{leaf}": np.stack([tensors[f"{prefix}.{e}.{leaf}.weight"] for e in range(c["num_experts"])])
                  for leaf in ("gate_proj", "up_proj", "down_proj")}
    return found


def sees(n, block, mutation=None, prompt=5):
    """[n, n]: whether row i sees key j."""
    i, j = np.arange(n)[:, None], np.arange(n)
    if mutation == "no mask":
        return np.ones((n, n), bool)
    if mutation == "causal":
        return j <= i
    if mutation == "blocks from the prompt's end":
        return (j < prompt) | (j - prompt) // block <= (i - prompt) // block
    return j // block <= i // block


def route(c, logits, bias, mutation=None):
    """Chosen ids [n, top] and their weights; and the smallest gap [n] that a choice hung on."""
    n, groups, top = len(logits), c["n_group"], c["num_experts_per_tok"]
    s = 1 / (1 + np.exp(-logits))
    if mutation == "softmax router":
        s = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    b = s if mutation == "no bias" else s + bias
    ids, weights, gaps = np.zeros((n, top), int), np.zeros((n, top)), np.full(n, np.inf)
    for row in range(n):
        members = b[row].reshape(groups, -1)
        rank = [sum(sorted(g)[-1 if mutation == "best of a group" else -2:]) for g in members]
        order = sorted(range(groups), key=lambda g: (-rank[g], g))
        kept = range(groups) if mutation == "no groups" else order[:c["topk_group"]]
        if len(kept) < groups:
            gaps[row] = rank[order[len(kept) - 1]] - rank[order[len(kept)]]
        size = members.shape[1]
        open_ids = sorted((g * size + e for g in kept for e in range(size)), key=lambda e: (-b[row, e], e))
        if len(open_ids) > top:
            gaps[row] = min(gaps[row], b[row, open_ids[top - 1]] - b[row, open_ids[top]])
        ids[row] = sorted(open_ids[:top])
        weights[row] = (b if mutation == "biased weights" else s)[row, ids[row]]
        if top > 1 and mutation != "not renormalised":
            weights[row] /= weights[row].sum() + 1e-20
        if mutation != "not scaled":
            weights[row] *= c["routed_scaling_factor"]
    return ids, weights, gaps


def forward(tensors, c, ids, mutation=None, *, block=BLOCK, routes=None, gaps=None):
    """Logits float64 [len(ids), vocabulary] of one sequence. `routes` and `gaps` collect what `route` found, layer by layer."""
    w = {name: np.asarray(t, np.float64) for name, t in tensors.items()}
    n, hd, heads, kv_heads = len(ids), c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
    rotary = hd if mutation == "rope on all" else int(hd * c["partial_rotary_factor"])

    def rms(x, weight):
        return oracle.rms_norm(x, weight, c["rms_norm_eps"])

    cos, sin = oracle.rotary(n, rotary, c["rope_theta"])

    def rope(x):  # [n, heads, hd]
        if mutation == "rope on the last":
            return np.concatenate([x[..., :hd - rotary], oracle.rotate(x[..., hd - rotary:], cos, sin)], -1)
        return np.concatenate([oracle.rotate(x[..., :rotary], cos, sin), x[..., rotary:]], -1)

    def turned(x, weight):
        return rms(rope(x), weight) if mutation == "norm after rope" else rope(rms(x, weight))

    def gated(h, prefix):
        gate, up = h @ w[f"{prefix}.gate_proj.weight"].T, h @ w[f"{prefix}.up_proj.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ w[f"{prefix}.down_proj.weight"].T

    def parts(qkv):  # [n, heads + 2 kv_heads, hd]
        if mutation != "interleaved qkv":
            return np.split(qkv, [heads, heads + kv_heads], axis=1)
        groups = qkv.reshape(n, kv_heads, -1, hd)
        return groups[:, :, :-2].reshape(n, heads, hd), groups[:, :, -2], groups[:, :, -1]

    visible = sees(n, block, mutation)
    x = w["model.word_embeddings.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        attn = f"{layer}.attention"
        h = rms(x, w[f"{layer}.input_layernorm.weight"])
        q, k, v = parts((h @ w[f"{attn}.query_key_value.weight"].T).reshape(n, -1, hd))
        q, k = turned(q, w[f"{attn}.query_layernorm.weight"]), turned(k, w[f"{attn}.key_layernorm.weight"])
        out = np.empty((n, heads, hd))
        for head in range(heads):
            kv = head // (heads // kv_heads)
            score = np.where(visible, q[:, head] @ k[:, kv].T / np.sqrt(hd), -np.inf)
            e = np.exp(score - score.max(-1, keepdims=True))
            out[:, head] = e / e.sum(-1, keepdims=True) @ v[:, kv]
        x = x + out.reshape(n, -1) @ w[f"{attn}.dense.weight"].T
        h = rms(x, w[f"{layer}.post_attention_layernorm.weight"])
        if i < c["first_k_dense_replace"]:
            x = x + gated(h, f"{layer}.mlp")
            continue
        chosen, weight, gap = route(c, h @ w[f"{layer}.mlp.gate.weight"].T, w[f"{layer}.mlp.gate.expert_bias"], mutation)
        if routes is not None:
            routes.append(chosen)
        if gaps is not None:
            gaps.append(gap)
        mixed = np.zeros_like(x)
        for row in range(n):
            for expert, share in zip(chosen[row], weight[row], strict=True):
                mixed[row] += share * gated(h[row], f"{layer}.mlp.experts.{expert}")
        x = x + mixed
        if c["num_shared_experts"] and mutation != "no shared expert":
            x = x + gated(h, f"{layer}.mlp.shared_experts")
    return rms(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def written(folder, c, seed=0, dtype="float32", shards=1, stack=False):
    found = tensors(c, seed)
    return folders.write(folder, c, stacked(c, found) if stack else found, dtype, shards), found


def wanted(tensors, c, n):
    """Tokens whose routes do not hang on a rounding, and their logits."""
    for seed in range(100):
        ids, gaps = np.random.default_rng([n, seed]).integers(0, 60, n), [np.array([np.inf])]
        logits = forward(tensors, c, ids, gaps=gaps)
        if min(gap.min() for gap in gaps) > LEAST_GAP:
            return ids, logits
    raise AssertionError("no tokens whose routes are certain")
