"""Independent oracles: a float64 LLaDA straight from Hugging Face tensor names, and a plain port of the reference sampler.

Neither shares code with the package. The forward takes one mistake by name (`mutation`), so that tests can show that each would be
seen.
"""
from __future__ import annotations

import numpy as np

P = "model.transformer."


def round_bfloat16(x):
    import ml_dtypes

    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rotary(n, width, theta):
    """cos and sin [n, 1, width / 2] of positions 0 to n, from float32 angles."""
    frequency = (theta ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    angle = (np.arange(n, dtype=np.float32)[:, None] * frequency).astype(np.float64)
    return np.cos(angle)[:, None], np.sin(angle)[:, None]


def rotate(x, cos, sin):
    """x [n, heads, width]: each half turned with the other."""
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(tensors, config, ids, mutation=None, *, places=None, store=None, slots=None):
    """Logits float64 [len(ids), vocabulary] of one unpadded sequence.

    `places` are the positions for RoPE, by default 0, 1, ... `store` is a list of a dictionary a layer: slot -> (key, value). The keys
    and values of `ids` go to `slots` there, and then every token sees all that the store holds.
    """
    w = {name: np.asarray(t, np.float64) for name, t in tensors.items()}
    n_heads, n_kv = config["n_heads"], config["n_kv_heads"] or config["n_heads"]
    hd = config["d_model"] // n_heads
    eps = config["rms_norm_eps"]
    if mutation == "eps":
        eps = 1e-6 if eps == 1e-5 else 1e-5
    n = len(ids)

    def rms(x, weight):
        return rms_norm(x, 1.0 if mutation == "no norm weight" else weight, eps)

    inv = (config["rope_theta"] ** (-np.arange(0, hd, 2) / hd)).astype(np.float32)
    angle = (np.asarray(range(n) if places is None else places, np.float32)[:, None] * inv[None]).astype(np.float64)
    if mutation == "bfloat16 angles":
        angle = round_bfloat16(angle)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def rope(x):  # [n, heads, hd]
        if mutation == "adjacent pairs":
            a, b = x[..., 0::2], x[..., 1::2]
            out = np.empty_like(x)
            out[..., 0::2], out[..., 1::2] = a * cos - b * sin, b * cos + a * sin
            return out
        return rotate(x, cos, sin)

    x = w[P + "wte.weight"][ids]
    for i in range(config["n_layers"]):
        b = f"{P}blocks.{i}."
        h = rms(x, w[b + "attn_norm.weight"])
        q = rope((h @ w[b + "q_proj.weight"].T).reshape(n, n_heads, hd))
        k = rope((h @ w[b + "k_proj.weight"].T).reshape(n, n_kv, hd))
        v = (h @ w[b + "v_proj.weight"].T).reshape(n, n_kv, hd)
        if store is not None:
            store[i].update((int(slot), pair) for slot, *pair in zip(slots, k, v, strict=True))
            k, v = (np.stack(each) for each in zip(*(store[i][slot] for slot in sorted(store[i])), strict=True))
        out = np.empty((n, n_heads, hd))
        for head in range(n_heads):
            kv = head % n_kv if mutation == "interleaved kv heads" else head // (n_heads // n_kv)
            s = q[:, head] @ k[:, kv].T / np.sqrt(hd)
            if mutation == "causal":
                s = np.where(np.tri(n, dtype=bool), s, -np.inf)
            e = np.exp(s - s.max(-1, keepdims=True))
            out[:, head] = e / e.sum(-1, keepdims=True) @ v[:, kv]
        x = x + out.reshape(n, -1) @ w[b + "attn_out.weight"].T
        h = rms(x, w[b + "ff_norm.weight"])
        gate, up = h @ w[b + "ff_proj.weight"].T, h @ w[b + "up_proj.weight"].T
        if mutation == "gate and up swapped":
            gate, up = up, gate
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[b + "ff_out.weight"].T
    tied = config["weight_tying"] != (mutation == "head tying")
    head = w[P + "wte.weight"] if tied or P + "ff_out.weight" not in w else w[P + "ff_out.weight"]
    return rms(x, w[P + "ln_f.weight"]) @ head.T


def transfer_counts(masks, steps):
    """[batch] masks -> [batch, steps]"""
    base, remainder = masks // steps, masks % steps
    counts = np.repeat(base[:, None], steps, 1)
    for row, extra in zip(counts, remainder, strict=True):
        row[:extra] += 1
    return counts


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def generate(logits_of, prompts, steps, gen_length, block_length, *, mask_id, eos_id, eot_id, pad_id=0, cfg_scale=0.0,
             logits_eos_inf=False, confidence_eos_eot_inf=False):
    """The reference sampler at temperature 0 with low-confidence remasking, on a left-padded batch.

    `logits_of(x, attention_mask)` maps [batch, length] to [batch, length, vocabulary]. `confidence_eos_eot_inf` is the reference's
    own flag, its chained assignment included. Returns the padded array and the number of forward passes.
    """
    longest = max(map(len, prompts))
    x = np.full((len(prompts), longest + gen_length), mask_id)
    attention = np.zeros_like(x)
    for row, keep, p in zip(x, attention, prompts, strict=True):
        row[:longest] = pad_id
        row[longest - len(p):longest] = p
        keep[longest - len(p):] = 1
    prompt_index = (x != mask_id) & (attention == 1) | (attention == 0)
    blocks = gen_length // block_length
    per_block = steps // blocks
    forwards = 0
    for block in range(blocks):
        start, end = longest + block * block_length, longest + (block + 1) * block_length
        counts = transfer_counts((x[:, start:end] == mask_id).sum(1), per_block)
        for i in range(per_block):
            mask_index = (x == mask_id) & (attention == 1)
            if cfg_scale > 0:
                hidden = x.copy()
                hidden[prompt_index] = mask_id
                both = logits_of(np.concatenate([x, hidden]), np.concatenate([attention, attention]))
                conditional, unconditional = np.split(both, 2)
                logits = unconditional + (cfg_scale + 1) * (conditional - unconditional)
            else:
                logits = logits_of(x, attention).copy()
            forwards += 1
            if logits_eos_inf:
                logits[:, :, eos_id] = -np.inf
            with_noise = logits  # at temperature 0 the reference gets the same object back
            x0 = with_noise.argmax(-1)
            if confidence_eos_eot_inf:
                with_noise[:, :, eos_id] = logits[:, :, eot_id] = -np.inf
            confidence = np.take_along_axis(softmax(logits), x0[..., None], -1)[..., 0]
            confidence[:, end:] = -np.inf
            confidence = np.where(mask_index, confidence, -np.inf)
            for row in range(len(x)):
                order = np.argsort(-confidence[row], kind="stable")[:counts[row, i]]
                x[row, order] = x0[row, order]
    return x, forwards


def padded_logits(tensors, config):
    """`logits_of` for `generate`: the oracle's forward of each row without its padding."""
    def logits_of(x, attention):
        out = np.zeros((*x.shape, len(tensors[P + "wte.weight"])))
        for row, keep, target in zip(x, attention.astype(bool), out, strict=True):
            target[keep] = forward(tensors, config, row[keep])
        return out
    return logits_of
