"""Logits against the independent float64 forward, and every pitfall of the architecture shown to be visible."""
import folders
import ml_dtypes
import numpy as np
import oracle
import pytest
from comparisons import assert_close

from llada_native import LLaDAForCausalLM, ModelConfig

LENGTHS = (1, 7, 31, 32, 33, 128)
SHAPES = [  # kv heads, tied, eps
    (4, False, 1e-5), (2, False, 1e-6), (1, True, 1e-5), (2, True, 1e-6)]


def build(tmp_path, dtype="float32", backend="native", isa=None, **changes):
    config = folders.config(**changes)
    tensors = folders.tensors(config)
    folders.write(tmp_path, config, tensors)
    return config, tensors, LLaDAForCausalLM.from_pretrained(tmp_path, dtype=dtype, backend=backend, isa=isa)


@pytest.mark.parametrize(("n_kv_heads", "tied", "eps"), SHAPES)
def test_matches_the_oracle(tmp_path, isa, n_kv_heads, tied, eps):
    config, tensors, model = build(tmp_path, isa=isa, n_kv_heads=n_kv_heads, weight_tying=tied, rms_norm_eps=eps, max_sequence_length=256)
    rng = np.random.default_rng(n_kv_heads)
    for n in LENGTHS:
        ids = rng.integers(0, config["embedding_size"], n)
        assert_close(model.forward(ids), oracle.forward(tensors, config, ids))


@pytest.mark.parametrize("size", [{"d_model": 64, "n_heads": 4}, {"d_model": 96, "n_heads": 4, "mlp_hidden_size": 130},
                                  {"d_model": 128, "n_heads": 1, "n_kv_heads": 1}, {"d_model": 40, "n_heads": 20, "n_kv_heads": 5}])
def test_matches_the_oracle_at_odd_widths(tmp_path, isa, size):
    config, tensors, model = build(tmp_path, isa=isa, **{"n_kv_heads": 2, "n_layers": 3, "embedding_size": 301, "vocab_size": 300, **size})
    ids = np.random.default_rng(0).integers(0, 300, 45)
    assert_close(model.forward(ids), oracle.forward(tensors, config, ids))


@pytest.mark.parametrize(("n_kv_heads", "tied", "eps"), SHAPES)
def test_reference_backend_matches_the_oracle(tmp_path, n_kv_heads, tied, eps):
    config, tensors, model = build(tmp_path, backend="reference", n_kv_heads=n_kv_heads, weight_tying=tied, rms_norm_eps=eps)
    ids = np.random.default_rng(0).integers(0, 60, 33)
    # Both are float64; forward() returns float32.
    assert_close(model.forward(ids), oracle.forward(tensors, config, ids), 2 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("mutation", ["adjacent pairs", "bfloat16 angles", "eps", "no norm weight", "gate and up swapped", "head tying",
                                      "interleaved kv heads", "causal"])
def test_a_mistake_would_be_seen(tmp_path, mutation):
    """The comparison above must fail against an oracle that makes the mistake."""
    config, tensors, model = build(tmp_path, n_kv_heads=2)
    ids = np.random.default_rng(0).integers(0, 60, 33)
    with pytest.raises(AssertionError, match="of the largest logit"):
        assert_close(model.forward(ids), oracle.forward(tensors, config, ids, mutation))


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [False, True])
def test_dtypes(tmp_path, isa, stored, dtype, tied):
    """The weights in memory are the stored ones, rounded once; arithmetic on them is float32."""
    config = folders.config(n_kv_heads=2, weight_tying=tied)
    tensors = folders.tensors(config)
    folders.write(tmp_path, config, tensors, dtype=stored)
    kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    held = {n: t.astype(kinds[stored]).astype(np.float32) for n, t in tensors.items()}
    held = {n: t if t.ndim == 1 else t.astype(kinds[dtype]).astype(np.float32) for n, t in held.items()}
    ids = np.random.default_rng(0).integers(0, 60, 33)
    with LLaDAForCausalLM.from_pretrained(tmp_path, dtype=dtype, isa=isa) as model:
        assert_close(model.forward(ids), oracle.forward(held, config, ids))


@pytest.mark.parametrize(("dtype", "group_size", "found"), [("int4", None, 64), ("int8", 32, 32), ("bfloat16", 32, None)])
def test_the_group_size_of_a_model(dtype, group_size, found):
    with LLaDAForCausalLM.random(folders.config(), dtype, group_size=group_size) as model:
        assert model.group_size == found
    assert LLaDAForCausalLM.random(folders.config(), "int4", backend="reference").group_size is None


@pytest.mark.parametrize(("dtype", "tensor", "holder", "most"), [("int4", "blocks.1.ff_out", "int4", 524032),
                                                                  ("int8", "blocks.0.q_proj", "int8", 8319008),
                                                                  ("int4", "ff_out", "int8", 8319008)])
def test_a_weight_whose_scale_float16_cannot_hold_is_named(tmp_path, dtype, tensor, holder, most):
    """The head of 4-bit models has 8 bits."""
    config = folders.config()
    tensors = folders.tensors(config)
    name = f"model.transformer.{tensor}.weight"
    tensors[name][7, 3] = most + 1
    folders.write(tmp_path, config, tensors)
    with pytest.raises(ValueError, match=f"^{name}: expected at most {most} in magnitude for {holder}, found {most + 1}; bfloat16"):
        LLaDAForCausalLM(tmp_path, dtype=dtype)
    tensors[name][7, 3] = most
    folders.write(tmp_path, config, tensors)
    assert np.isfinite(LLaDAForCausalLM(tmp_path, dtype=dtype).forward([1, 2])).all()


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize(("tensor", "tied"), [("wte", False), ("wte", True), ("blocks.1.ff_out", False), ("ff_out", False)])
def test_a_weight_that_float16_cannot_hold_is_named(tmp_path, stored, tensor, tied):
    config = folders.config(weight_tying=tied)
    tensors = folders.tensors(config)
    name = f"model.transformer.{tensor}.weight"
    tensors[name][7, 3] = -1e6
    folders.write(tmp_path, config, tensors, dtype=stored)
    found = float(np.float32(-1e6).astype(folders.DTYPES[stored]))
    with pytest.raises(ValueError, match=f"^{name}: expected at most 65504 in magnitude for float16, found {found:.0f}; bfloat16"):
        LLaDAForCausalLM(tmp_path, dtype="float16")
    for dtype in ("float32", "bfloat16"):
        assert np.isfinite(LLaDAForCausalLM(tmp_path, dtype=dtype).forward([1, 2])).all()
    with pytest.warns(RuntimeWarning, match=name), LLaDAForCausalLM(tmp_path, dtype="float16", fallback="reference") as model:
        assert model.backend == "reference"


def test_norms_are_float32_in_float16_models(tmp_path):
    config = folders.config()
    tensors = folders.tensors(config)
    tensors["model.transformer.ln_f.weight"][3] = 1e6
    folders.write(tmp_path, config, tensors)
    logits = [LLaDAForCausalLM(tmp_path, dtype=dtype).forward([1, 2, 3]) for dtype in ("float32", "float16")]
    assert_close(logits[1], logits[0], 1e-3)


def test_auto_dtype_keeps_bfloat16(tmp_path):
    config = folders.config()
    for stored, wanted in (("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")):
        folder = tmp_path / stored
        folder.mkdir()
        folders.write(folder, config, folders.tensors(config), dtype=stored)
        assert LLaDAForCausalLM.from_pretrained(folder).dtype == wanted


def test_shards_give_the_same_model(tmp_path):
    config = folders.config(n_kv_heads=2)
    tensors = folders.tensors(config)
    logits = []
    for shards in (1, 3):
        folder = tmp_path / str(shards)
        folder.mkdir()
        folders.write(folder, config, tensors, shards=shards)
        logits.append(LLaDAForCausalLM.from_pretrained(folder).forward([1, 2, 3]))
    assert np.array_equal(*logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_dropped(tiny, side):
    folder, config, tensors = tiny
    model = LLaDAForCausalLM.from_pretrained(folder)
    rng = np.random.default_rng(0)
    ids, mask = np.full((3, 20), 7), np.zeros((3, 20), int)
    rows = [rng.integers(0, 60, n) for n in (20, 5, 13)]
    for i, row in enumerate(rows):
        where = slice(20 - len(row), 20) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    logits = model.forward_logits_batch(ids, mask)
    assert logits.shape == (3, 20, 64) and logits.dtype == np.float32
    assert not logits[mask == 0].any()
    for i, row in enumerate(rows):
        assert np.array_equal(logits[i][mask[i] == 1], model.forward(row))
        assert_close(logits[i][mask[i] == 1], oracle.forward(tensors, config, row))


def test_mask_may_have_holes(tiny):
    folder, config, tensors = tiny
    ids, mask = np.arange(12)[None], np.array([[1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0]])
    logits = LLaDAForCausalLM.from_pretrained(folder).forward(ids, mask)
    assert_close(logits[mask == 1], oracle.forward(tensors, config, ids[mask == 1]))


def test_shapes_follow_the_input(tiny):
    model = LLaDAForCausalLM.from_pretrained(tiny[0])
    assert model.forward([1, 2, 3]).shape == (3, 64)
    assert model.forward(np.ones((2, 3), np.int64)).shape == (2, 3, 64)
    assert model.forward([[1, 2, 3], [4, 5, 6]]).shape == (2, 3, 64)
    assert [x.shape for x in model.forward([np.array([1, 2]), np.array([3])])] == [(2, 64), (1, 64)]


def test_selected_rows_are_the_rows(tiny, isa):
    """Rows left out of the last layer change nothing in the others."""
    backend = LLaDAForCausalLM.from_pretrained(tiny[0], isa=isa)._backend
    rng = np.random.default_rng(0)
    lengths = np.array([40, 3, 77], np.int32)
    tokens = rng.integers(0, 64, lengths.sum()).astype(np.int32)
    everything = backend.hidden(tokens, lengths, np.arange(120, dtype=np.int32))
    for n in (1, 2, 17, 119):
        rows = np.sort(rng.choice(120, n, replace=False)).astype(np.int32)
        assert np.array_equal(backend.hidden(tokens, lengths, rows), everything[rows])
    assert backend.hidden(tokens, lengths, np.empty(0, np.int32)).shape == (0, 32)


def test_random_model_depends_on_the_seed_only():
    config = folders.config(n_kv_heads=2)
    a = LLaDAForCausalLM.random(config, "float32", seed=1)
    b = LLaDAForCausalLM.random(ModelConfig.from_dict(config), "float32", seed=1, num_threads=1)
    c = LLaDAForCausalLM.random(config, "float32", seed=2)
    d = LLaDAForCausalLM.random(config, "float32", seed=1, backend="reference")
    ids = np.arange(30)
    assert np.array_equal(a.forward(ids), b.forward(ids))
    assert not np.allclose(a.forward(ids), c.forward(ids))
    assert_close(a.forward(ids), d.forward(ids))
