"""llama.cpp and this package at LLaDA-8B's shape, two layers of random weights, in one process and in turns.

    pip install ".[peers]"
    python benchmarks/peers/compare.py --rows 32 160 512 --rounds 7

Rates are those of the matrix products of a whole forward pass, in 10^9 multiplications and additions a second: the median over rounds.
Ratios are those of medians. Both compute every row. llama.cpp runs its `llama` architecture, whose matrices are the same; it attends
causally, and its head of 512 tokens, half a percent of the products, is in its time but not counted.

--isa limits ours only. For AVX2 against AVX2, build llama.cpp without more, in an environment of its own; pip would take a wheel of other
options from its cache:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX_VNNI=OFF" \\
      pip install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
    python benchmarks/peers/compare.py --isa avx2

On processors with AMX, llama.cpp's code for it ends with an illegal instruction when GCC 12 has compiled it. Without:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" \\
      pip install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
"""
from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import synthetic_gguf
from turns import ratios, seconds, table

import llada_native

try:
    import llama_cpp
except ImportError:
    sys.exit("compare.py needs the package llama_cpp, which the extra peers brings: pip install '.[peers]'")

LAYERS = 2
OPERATIONS = 2 * LAYERS * (4 * synthetic_gguf.D_MODEL**2 + 3 * synthetic_gguf.D_MODEL * synthetic_gguf.MLP)  # a row
FORMATS = ("Q4_0", "Q4_K_M", "Q8_0", "BF16", "F16")
RATIOS = (
    ("int4, group 128", ("llama.cpp Q4_0", "llama.cpp Q4_K_M")),
    ("int4, group 32", ("llama.cpp Q4_0", "llama.cpp Q4_K_M")),
    ("int8, group 128", ("llama.cpp Q8_0",)),
    ("bfloat16", ("llama.cpp BF16",)),
    ("bfloat16_fast", ("llama.cpp BF16",)),
)
OURS = (("int4", 128), ("int4", 32), ("int8", 128), ("bfloat16", 128), ("bfloat16_fast", 128), ("float32", 128))


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level, text, data):
    """llama.cpp's log."""


def llama(path: Path, threads: int) -> Callable[[int], None]:
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_mmap = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = synthetic_gguf.CONTEXT, 512, 512
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, settings)

    def forward(rows: int) -> None:
        batch = llama_cpp.llama_batch_init(rows, 0, 1)
        batch.n_tokens = rows
        for i in range(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = i % synthetic_gguf.VOCABULARY, i, 1, 0
            batch.logits[i] = 1  # of every row, as in a denoising step: the last layer would leave out the others
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        failed = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        if failed:
            raise RuntimeError("llama_decode failed")

    return forward


def ours(dtype: str, group_size: int, threads: int, isa: str | None) -> Callable[[int], None]:
    config = llada_native.ModelConfig(n_layers=LAYERS, d_model=synthetic_gguf.D_MODEL, n_heads=synthetic_gguf.HEADS,
                                      n_kv_heads=synthetic_gguf.HEADS, mlp_hidden_size=synthetic_gguf.MLP,
                                      vocabulary=synthetic_gguf.VOCABULARY, max_sequence_length=4096, rope_theta=5e5, rms_norm_eps=1e-5,
                                      weight_tying=False)
    backend = llada_native.LLaDAForCausalLM.random(config, dtype, group_size=group_size, num_threads=threads, isa=isa)._backend

    def forward(rows: int) -> None:
        ids = (np.arange(rows) % synthetic_gguf.VOCABULARY).astype(np.int32)
        backend.hidden(ids, np.array([rows], np.int32), np.arange(rows, dtype=np.int32))

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 160, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", help="build of our kernels; default: the fastest that runs")
    arguments = parser.parse_args()
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "F16.gguf"
        synthetic_gguf.write(source, LAYERS)
        engines = {}
        for name in FORMATS:
            path = Path(folder) / f"{name}.gguf"
            if name != "F16":
                parameters = llama_cpp.llama_model_quantize_default_params()
                parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
                if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(parameters)):
                    raise RuntimeError(f"llama_model_quantize failed for {name}")
            engines[f"llama.cpp {name}"] = llama(path, arguments.threads)
        for dtype, group_size in OURS:
            label = f"{dtype}, group {group_size}" if dtype.startswith("int") else dtype
            engines[label] = ours(dtype, group_size, arguments.threads, arguments.isa)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for rows in arguments.rows:
        found = seconds({name: partial(forward, rows) for name, forward in engines.items()}, arguments.rounds)
        for name, duration in found.items():
            rates[name].append(OPERATIONS * rows / duration / 1e9)
    columns = [f"{rows} rows" for rows in arguments.rows]
    print(llama_cpp.llama_print_system_info().decode(), file=sys.stderr)
    print(table("engine", columns, rates), table("ratio", columns, ratios(rates, RATIOS), 2), sep="\n\n")


if __name__ == "__main__":
    main()
