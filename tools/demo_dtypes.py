"""What each weight format costs: logits against float32 on held-out text, and held-out exact match per task.

    python tools/demo_dtypes.py --prompts 200
"""
import argparse
import random

import demo_tasks as tasks
import numpy as np
from demo_evaluate import exact_match
from scipy.special import log_softmax

import llada_native

FORMATS = [("float32", 64), ("bfloat16", 64), ("bfloat16_fast", 64), ("float16", 64), ("int8", 128), ("int8", 32), ("int4", 128),
           ("int4", 64), ("int4", 32)]
LAYER = (1024, 4096)  # outputs, inputs of the random layer whose error is measured


def held_out(model, prompts: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids of held-out conversations with half of the answer masked, and the masked positions."""
    rng, pick = random.Random(seed), np.random.default_rng(seed)
    names = [t for t in tasks.TASKS if t not in tasks.ALWAYS_TRAINED]
    rows = []
    for i in range(prompts):
        prompt, _, answer = tasks.sample(rng, want_held_out=True, task=names[i % len(names)])
        before = model.tokenizer.encode_chat([{"role": "user", "content": prompt}])
        after = model.tokenizer.encode(answer)
        hidden = len(before) + np.sort(pick.permutation(len(after))[:max(1, len(after) // 2)])
        ids = np.array([*before, *after])
        ids[hidden] = model.config.mask_token_id
        rows.append((ids, hidden))
    return rows


def logits(model, rows) -> np.ndarray:
    found = [model.forward(ids)[hidden] for ids, hidden in rows]
    return log_softmax(np.concatenate(found).astype(np.float64), axis=1)


def layer_error(dtype: str, group_size: int) -> float:
    """Root mean square error of a random layer, over that of its output."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal(LAYER, np.float32), rng.standard_normal((32, LAYER[1]), np.float32)
    out = np.empty((32, LAYER[0]), np.float32)
    llada_native._native.PackedLinear(weight, dtype, "", group_size)(x, out)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    return float(np.sqrt(((out - exact) ** 2).mean() / (exact**2).mean()))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--prompts", type=int, default=200, help="per task")
    ap.add_argument("--seed", type=int, default=2026)
    a = ap.parse_args()
    exact = llada_native.LLaDAForCausalLM(dtype="float32")
    rows = held_out(exact, a.prompts, a.seed)
    wanted = logits(exact, rows)
    names = [t for t in tasks.TASKS if t not in tasks.ALWAYS_TRAINED]
    print("| dtype | group | layer error | KL divergence, nats | top-1 agreement | " + " | ".join(names) + " | mean |")
    print("|" + "---|" * (len(names) + 6))
    for dtype, group_size in FORMATS:
        model = llada_native.LLaDAForCausalLM(dtype=dtype, group_size=group_size)
        found = logits(model, rows)
        divergence = float((np.exp(wanted) * (wanted - found)).sum(1).mean())
        agreement = float((found.argmax(1) == wanted.argmax(1)).mean())
        score = [exact_match(model, t, a.prompts, a.seed, gen_length=64, block_length=32, max_steps=64) for t in names]
        print(f"| {dtype} | {group_size if dtype.startswith('int') else ''} | {layer_error(dtype, group_size):.1e} | {divergence:.1e} | "
              f"{agreement:.4f} | " + " | ".join(f"{s:.3f}" for s in score) + f" | {np.mean(score):.4f} |", flush=True)


if __name__ == "__main__":
    main()
