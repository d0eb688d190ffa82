"""The released checkpoints at their true shapes with random weights: memory, time of a block step, a generation.

    python tools/full_size.py                               # all that fit into memory, int4, group 64
    python tools/full_size.py --dtype int8 LLaDA-MoE-7B-A1B
    python tools/full_size.py --cache-dir folder            # keep the packed weights for another run

Each model has a process of its own, so that its peak of resident memory is its own. A block step computes 32 rows of a sequence of 384
whose other keys are cached, and all of their logits.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import llada_native
from llada_native import ModelConfig
from llada_native.loading import weight_bytes

GIB = 1 << 30
ROWS, KEYS, TILE, ROUNDS = 32, 384, 4096, 15
LLADA2 = {"n_kv_heads": 4, "vocabulary": 157184, "max_sequence_length": 32768, "rope_theta": 6e5, "rms_norm_eps": 1e-6,
          "weight_tying": False, "architecture": "LLaDA2MoeModelLM", "qk_norm": True, "n_experts": 256, "experts_per_token": 8,
          "dense_layers": (0,), "routing": "sigmoid", "expert_groups": 8, "chosen_groups": 4, "expert_scale": 2.5, "head_dim": 128,
          "rotary_dim": 64, "attention_block": 32, "mask_token_id": 156895, "eos_token_id": 156892}
CONFIGS = {
    "LLaDA-8B": ModelConfig(32, 4096, 32, 32, 12288, 126464, 4096, 5e5, 1e-5, False, 126336, 126081),
    "iLLaDA-8B": ModelConfig(32, 4096, 32, 8, 14336, 155136, 8192, 5e5, 1e-6, True, 5, 2, architecture="ILLaDAForCausalLM"),
    "LLaDA-MoE-7B-A1B": ModelConfig(16, 2048, 16, 16, 8192, 157184, 8192, 5e4, 1e-5, False, 156895, 156892, qk_norm=True, n_experts=64,
                                    architecture="LLaDAMoEModelLM", experts_per_token=8, expert_hidden_size=1024),
    "LLaDA2.0-mini": ModelConfig(n_layers=20, d_model=2048, n_heads=16, mlp_hidden_size=5120, expert_hidden_size=512,
                                 shared_expert_hidden_size=512, **LLADA2),
    "Dream-7B": ModelConfig(28, 3584, 28, 4, 18944, 152064, 131072, 1e6, 1e-6, False, 151666, 151643, architecture="DreamModel",
                            qkv_bias=True, shifted_logits=True),
}


def resident(line: str) -> int:
    """Bytes that /proc/self/status states: VmRSS now, VmHWM at most."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{line}:")[1].split()[0]) * 1024


def block_step(model: llada_native.LLaDAForCausalLM, rows: int) -> float:
    """Median milliseconds of `rows` rows in the middle of a sequence, their logits included."""
    backend, vocabulary = model._backend, model.config.vocabulary
    tokens, cache = np.arange(KEYS, dtype=np.int32), backend.create_kv_cache()
    lengths, none = np.array([KEYS], np.int32), np.empty(0, np.int32)
    backend.hidden(tokens, lengths, none, np.array([0], np.int32), [cache])
    wanted, tile, taken = np.arange(rows, dtype=np.int32), np.empty((rows, TILE), np.float32), []
    for _ in range(ROUNDS):
        clock = time.perf_counter()
        hidden = backend.hidden(tokens[-rows:], np.array([rows], np.int32), wanted, np.array([KEYS - rows], np.int32), [cache])
        for begin in range(0, vocabulary, TILE):
            end = min(begin + TILE, vocabulary)
            backend.head(hidden, begin, end, tile.reshape(-1)[:rows * (end - begin)].reshape(rows, end - begin))
        taken.append(1e3 * (time.perf_counter() - clock))
    cache.close()
    return float(np.median(taken))


def measure(name: str, dtype: str, group_size: int, cache_dir: str | None) -> dict[str, Any]:
    clock = time.perf_counter()
    model = llada_native.LLaDAForCausalLM.random(CONFIGS[name], dtype, group_size=group_size, cache_dir=cache_dir)
    loaded, loading = time.perf_counter() - clock, resident("VmHWM")
    steps = {rows: block_step(model, rows) for rows in (ROWS, 4 * ROWS)}
    options = {} if model.config.attention_block else {"block_length": 32, "preset": "fast"}
    out = model.generate(np.arange(1000, 1128), gen_length=32, **options)
    weights = model.memory()["weights"]
    return {"name": name, "parameters": model.config.n_parameters(), "weights": weights, "loaded": loaded, "loading": loading,
            "peak": resident("VmHWM"), "steps": steps, "passes": out.n_forward, "rows": out.rows_computed,
            "seconds": out.timings["total"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(CONFIGS)}")
    parser.add_argument("--dtype", default="int4")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--cache-dir")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(measure(a.child, a.dtype, a.group_size, a.cache_dir)))
        return
    if unknown := set(a.names) - set(CONFIGS):
        parser.error(f"MODEL: expected some of {', '.join(CONFIGS)}, found {', '.join(sorted(unknown))}")
    print("| model | parameters | weights, GB | peak resident, GB | load, s | 32 rows, ms | 128 rows, ms | 32 tokens: passes, rows, s |\n"
          "|---|---|---|---|---|---|---|---|")
    for name in a.names or CONFIGS:
        memory = llada_native.machine.available_memory()
        need = weight_bytes(CONFIGS[name], a.dtype, a.group_size)
        if memory is not None and need > memory:
            print(f"| {name} | | {need / 1e9:.2f} | does not fit | | | | |")
            continue
        command = [sys.executable, __file__, "--child", name, "--dtype", a.dtype, "--group-size", str(a.group_size)]
        kept = ["--cache-dir", str(Path(a.cache_dir) / name)] if a.cache_dir else []
        made = subprocess.run([*command, *kept], check=True, stdout=subprocess.PIPE)
        r = json.loads(made.stdout)
        print(f"| {name} | {r['parameters'] / 1e9:.2f}B | {r['weights'] / 1e9:.2f} | {r['peak'] / 1e9:.2f} | {r['loaded']:.1f} | "
              f"{r['steps']['32']:.0f} | {r['steps']['128']:.0f} | {r['passes']}, {r['rows']}, {r['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
