"""Caches that hold float16: what is lost by it, and what is not."""
from __future__ import annotations

import folders
import numpy as np
import oracle
import pytest
from slots import BACKENDS, BUILDS, Plan, hidden, numbers, scattered

from llada_native import KVCache, LLaDAForCausalLM

HALF_ULP = 2.0**-11  # of a normal float16, relative
HALF_STEP = 2.0**-25  # of a subnormal one


@pytest.mark.parametrize(("backend", "isa"), BUILDS)
def test_the_error_is_that_of_the_rounding(tmp_path, backend, isa):
    """One layer whose attention is all it adds, against a bound from half a unit in the last place of keys and values.

    A rounded key errs by at most u |k| + t in each of its d components, u and t as above, so a score q k / sqrt(d) by at most
    e = |q| (u |k| + t sqrt(d)) / sqrt(d) in Euclidean norms. A weight of the softmax then changes by a factor within exp(-2e) and exp(2e),
    and component j of what is attended to by at most D = ((exp(2e) - 1)(1 + u) + u) max |v_j| + t exp(2e). With y the sum of the
    residual stream and of that, r = rms(y), which changes by at most |D| / sqrt(width), and y' and r' after rounding,
    |y'/r' - y/r| <= (D + |y| / r |D| / sqrt(width)) / r'.
    """
    config = folders.config(n_layers=1, n_heads=4, n_kv_heads=4)
    tensors, block, width, heads = folders.tensors(config, 3), "model.transformer.blocks.0.", 32, 4
    tensors[block + "attn_out.weight"] = np.eye(width, dtype=np.float32)
    tensors[block + "ff_out.weight"] *= 0
    for name in ("q_proj", "k_proj", "v_proj"):
        tensors[block + name + ".weight"] *= 4
    folders.write(tmp_path / "model", config, tensors)
    engine = LLaDAForCausalLM.from_pretrained(tmp_path / "model", backend=backend, isa=isa, num_threads=1)._backend
    tokens, dim = np.random.default_rng(0).integers(0, 64, 70), width // heads
    rotated = []  # queries after RoPE are the keys of a model whose keys are queries
    for weight in ("q_proj", "k_proj"):
        store = [{}]
        turned = {**tensors, block + "k_proj.weight": tensors[f"{block}{weight}.weight"]}
        oracle.forward(turned, config, tokens, store=store, slots=range(70))
        rotated.append(np.stack([store[0][slot][0] for slot in range(70)], 1))
    (q, k), v = rotated, np.stack([store[0][slot][1] for slot in range(70)], 1)  # [heads, 70, dim]
    attended = oracle.softmax(q @ k.swapaxes(1, 2) / np.sqrt(dim)) @ v
    x, norm = (tensors[f"model.transformer.{name}.weight"].astype(float) for name in ("wte", "ln_f"))
    y = x[tokens] + attended.swapaxes(0, 1).reshape(70, width)
    r = np.sqrt((y**2).mean(1, keepdims=True) + config["rms_norm_eps"])
    sizes = np.linalg.norm(k, axis=2).max(1)[:, None]
    e = np.linalg.norm(q, axis=2) * (HALF_ULP * sizes + HALF_STEP * np.sqrt(dim)) / np.sqrt(dim)  # [heads, 70]
    d = ((np.exp(2 * e) - 1) * (1 + HALF_ULP) + HALF_ULP)[:, :, None] * np.abs(v).max(1)[:, None] + HALF_STEP * np.exp(2 * e)[:, :, None]
    d = d.swapaxes(0, 1).reshape(70, width)
    shift = np.linalg.norm(d, axis=1, keepdims=True) / np.sqrt(width)
    bound = (d + np.abs(y) / r * shift) / (r - shift) * np.abs(norm)
    wanted, errors = y / r * norm, {}
    for dtype in ("float32", "float16"):
        found, = hidden(engine, (tokens, range(70), None, engine.create_kv_cache(dtype)))
        errors[dtype] = np.abs(found - wanted)
    single = 1e-5 * np.abs(wanted).max()
    assert (errors["float32"] < single).all()
    assert (errors["float16"] < bound + single).all(), (errors["float16"] / bound).max()
    assert errors["float16"].max() > 4 * single, "float16 it is"


@pytest.mark.parametrize(("backend", "isa"), BUILDS)
def test_own_keys_are_rounded_too(backend, isa):
    """So when they were computed does not matter: a stale row of one layer equals a fresh one, bit for bit in the engine."""
    model = LLaDAForCausalLM.random(folders.config(n_layers=1, n_kv_heads=2), "float32", isa=isa, num_threads=1, backend=backend)
    engine, rng = model._backend, np.random.default_rng(7)
    cache, held = engine.create_kv_cache("float16"), np.empty(0, int)
    for _ in range(25):
        slots = scattered(rng, len(held))
        grown = max(len(held), int(slots[-1]) + 1)
        held = np.resize(held, grown)
        held[slots] = rng.integers(0, 60, len(slots))
        found, = hidden(engine, (held[slots], slots, None, cache))
        wanted = hidden(engine, (held, range(grown), None, engine.create_kv_cache("float16")))[0][slots]
        assert np.allclose(found, wanted, rtol=0, atol=1e-12) if backend == "reference" else np.array_equal(found, wanted)
    assert grown > 64


@pytest.mark.parametrize("size", [{"d_model": 32, "n_heads": 4, "n_kv_heads": 2}, {"d_model": 80, "n_heads": 2, "n_kv_heads": 1}], ids=str)
def test_rows_are_bit_identical(isa, size):
    """Alone, beside requests with no cache and with caches of both kinds, and on 1, 2 and 3 threads."""
    model = LLaDAForCausalLM.random(folders.config(**size), "float32", isa=isa, num_threads=1)
    backend, plans = model._backend, {dtype: Plan(8, 12, dtype) for dtype in ("float16", "float32")}
    alone = {dtype: plan.run(backend) for dtype, plan in plans.items()}
    assert not np.array_equal(alone["float16"][-1], alone["float32"][-1])
    for threads in (1, 2, 3):
        model.num_threads = threads
        beside = [backend.create_kv_cache(dtype) for dtype in ("float16", "float32")]
        for cache in beside:
            hidden(backend, (np.arange(50), range(50), None, cache))
        others = [(np.arange(41), range(41), None, None), *(([5, 6, 7], [3, 17, 49], None, cache) for cache in beside)]
        for around in ((), others, others[::-1]):
            for dtype, plan in plans.items():
                for found, wanted in zip(plan.run(backend, *around), alone[dtype], strict=True):
                    assert np.array_equal(found, wanted), f"{dtype}, {threads} threads, {len(around)} others"


def test_the_engine_rounds_as_the_reference(tiny):
    """One pass of two layers, float16 in both. Where float32 and float64 round to neighbours, a key differs by a unit of float16."""
    tokens = np.random.default_rng(2).integers(0, 64, 90)
    found = {}
    for backend in ("native", "reference"):
        engine = LLaDAForCausalLM.from_pretrained(tiny[0], backend=backend, num_threads=1)._backend
        found[backend] = [hidden(engine, (tokens, range(90), None, engine.create_kv_cache(dtype)))[0] for dtype in ("float16", "float32")]
    rounding = np.abs(found["reference"][0] - found["reference"][1]).max()
    assert np.abs(found["native"][0] - found["reference"][0]).max() < rounding / 4


@pytest.mark.parametrize("heads", [{"n_heads": 4, "n_kv_heads": 2}, {"d_model": 80, "n_heads": 2, "n_kv_heads": 1}], ids=str)
def test_memory_is_halved_and_keeps_its_content(isa, heads):
    model = LLaDAForCausalLM.random(folders.config(n_layers=3, **heads), "float32", isa=isa, num_threads=1)
    backend, tokens = model._backend, np.random.default_rng(1).integers(0, 60, 400)
    single, half, once = (backend.create_kv_cache(dtype) for dtype in ("float32", "float16", "float16"))
    assert [c.dtype for c in (single, half)] == ["float32", "float16"]
    assert half.bytes == 0 and 2 * half.bytes_per_token == single.bytes_per_token
    for begin in range(0, 400, 33):
        piece = (tokens[begin:begin + 33], range(begin, min(begin + 33, 400)), None)
        found, _ = hidden(backend, (*piece, half), (*piece, single))
        assert 2 * half.bytes == single.bytes and half.bytes >= half.length * half.bytes_per_token
        if begin == 0:
            hidden(backend, (*piece, once))
            first = found
    half.truncate(33)
    assert np.array_equal(hidden(backend, ([1], [33], None, half))[0], hidden(backend, ([1], [33], None, once))[0])
    half.truncate(0)
    assert np.array_equal(hidden(backend, (tokens[:33], range(33), None, half))[0], first)


def test_the_workspace_widens_one_layer(isa):
    """What a float16 cache costs beside itself does not grow with the layers."""
    grown = []
    for layers in (1, 6):
        model = LLaDAForCausalLM.random(folders.config(n_layers=layers), "float32", isa=isa, num_threads=1)
        backend = model._backend
        single, half = backend.create_kv_cache(), backend.create_kv_cache("float16")
        hidden(backend, (np.arange(320) % 60, range(320), None, single))
        before = backend.workspace_bytes
        hidden(backend, (np.arange(320) % 60, range(320), None, half))
        grown.append(backend.workspace_bytes - before)
        assert grown[-1] <= 320 * single.bytes_per_token // layers
    assert grown[0] == grown[1] > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_of_another_dtype_is_refused(tiny, backend):
    model = LLaDAForCausalLM.from_pretrained(tiny[0], backend=backend, num_threads=1)
    for dtype in ("bfloat16", "int8", "half", ""):
        with pytest.raises(ValueError, match=rf"^dtype: expected one of 'float32', 'float16', found '{dtype}'$"):
            model._backend.create_kv_cache(dtype)
        with pytest.raises(ValueError, match=rf"^dtype: expected one of 'float32', 'float16', found '{dtype}'$"):
            KVCache(model, dtype)
    with pytest.raises(TypeError, match="dtype"):
        KVCache(model, np.float16)
    assert KVCache(model).dtype == "float32" and KVCache(model, "float16").dtype == "float16"


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_values_beyond_float16_are_seen(tmp_path, backend):
    """They become infinite, and the rows that see them are no numbers: nothing is silently wrong."""
    config = folders.config(n_layers=1)
    tensors = folders.tensors(config)
    tensors["model.transformer.blocks.0.v_proj.weight"] *= 1e6
    folders.write(tmp_path / "model", config, tensors)
    engine = LLaDAForCausalLM.from_pretrained(tmp_path / "model", backend=backend, num_threads=1)._backend
    request = (numbers(range(20)), range(20), None)
    assert np.isfinite(hidden(engine, (*request, engine.create_kv_cache()))[0]).all()
    assert np.isnan(hidden(engine, (*request, engine.create_kv_cache("float16")))[0]).any(1).all()
