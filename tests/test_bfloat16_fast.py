"""Products of bfloat16 with bfloat16: their rounding, and the bits of float32 sums in the order of a build."""
import folders
import llada2
import ml_dtypes
import numpy as np
import oracle
import pytest
from bfloat16 import SMALLEST, paired, rounded

from llada_native import LLaDAForCausalLM, _native
from llada_native.loading import weight_bytes

EPS = np.finfo(np.float32).eps
BLOCK = 512  # depths of one chain of sums


@pytest.fixture
def kernels(isa):
    return _native.Kernels(isa)


def every_rounding():
    """Each bfloat16, what lies halfway to the next and its neighbours on both sides; random patterns."""
    codes = np.arange(0x7F80, dtype=np.uint32) << 16
    patterns = np.concatenate([codes, codes + 0x8000, codes + 0x7FFF, codes + 0x8001,
                               np.random.default_rng(0).integers(0, 0x7F800000, 10_000).astype(np.uint32), [0x7F800000]]).astype(np.uint32)
    return np.concatenate([patterns, patterns | 0x80000000]).view(np.float32)


def test_rounding_is_to_nearest_even(kernels):
    x = every_rounding()
    out = np.empty(len(x), np.float32)
    kernels.round_bf16(x, out)
    with np.errstate(over="ignore"):
        assert np.array_equal(out.view(np.uint32), rounded(x).view(np.uint32))
    nans = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    kernels.round_bf16(nans, out[:4])
    assert np.isnan(out[:4]).all() and (out[:4].view(np.uint32) & 0xFFFF == 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 31, 32, 33, 100, 257])
def test_pairs_are_the_same_numbers(kernels, n):
    x = np.random.default_rng(n).standard_normal(n + 1, np.float32)
    even = n + n % 2
    out = np.full(even + 2, 7, np.uint16)
    kernels.round_pairs(x[1:], out[:even])  # unaligned
    wanted = np.zeros(even, np.float32)
    wanted[:n] = rounded(x[1:])
    found = (out[:even].reshape(-1, 2)[:, ::-1].reshape(-1).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(found, wanted) and (out[even:] == 7).all()


def sums_of_tiles(x, w):
    """x [rows, depth] . w [depth, panel] of bfloat16 numbers as tile registers add them up: of each 32 depths the odd ones' products from
    zero on, those of the even ones likewise, and the sum of the two to the total. Products are exact in float32."""
    total = np.zeros((len(x), w.shape[1]), np.float32)
    for k in range(0, x.shape[1], 32):
        odd, even = np.zeros_like(total), np.zeros_like(total)
        for i in range(k, min(k + 32, x.shape[1])):
            into = odd if i % 2 else even
            into += x[:, i, None] * w[i]
        total += odd + even
    return total


@pytest.mark.parametrize("depth", [2, 6, 64, 254, 256])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm_has_the_bits_of_float32(kernels, depth, accumulate):
    """Products of two bfloat16 are exact in float32, so one order of sums has one result."""
    depth = -(-depth // kernels.paired_depth) * kernels.paired_depth
    if not kernels.has_gemm_bf16:
        with pytest.raises(ValueError, match="gemm_bf16: not in this build"):
            kernels.gemm_bf16(*(np.zeros(shape, np.uint16) for shape in ((1, 2), (1, kernels.panel, 2))), np.zeros((1, 1), np.float32))
        return
    rng = np.random.default_rng(depth)
    for rows in [*range(1, 27), 61]:
        a, w = rng.standard_normal((rows, depth), np.float32), rng.standard_normal((depth, kernels.panel), np.float32)
        c = rng.standard_normal((rows, kernels.panel), np.float32)
        wanted = c.copy()
        if kernels.has_tiles:
            wanted = sums_of_tiles(rounded(a), rounded(w)) + (c if accumulate else 0)
        else:
            kernels.gemm_f32(rounded(a), rounded(w), wanted, accumulate)
        pairs = np.ascontiguousarray(paired(w.T).transpose(1, 0, 2))
        kernels.gemm_bf16(paired(a).reshape(rows, depth), pairs, c, accumulate)
        assert np.array_equal(c, wanted), np.abs(c - wanted).max()


def by_blocks(kernels, x, weight):
    """x . weight^T by gemm_f32, or as tile registers add up, blocks of BLOCK depths added up."""
    depth, panel = x.shape[1], kernels.panel
    channels = -(-len(weight) // panel) * panel
    padded, out = np.zeros((depth, channels), np.float32), np.empty((len(x), channels), np.float32)
    padded[:, :len(weight)] = weight.T
    for p in range(0, channels, panel):
        c = np.empty((len(x), panel), np.float32)
        for k in range(0, depth, BLOCK):
            a, w = (np.ascontiguousarray(part) for part in (x[:, k:k + BLOCK], padded[k:k + BLOCK, p:p + panel]))
            if kernels.has_tiles:
                c = sums_of_tiles(a, w) + (c if k else 0)
            else:
                kernels.gemm_f32(a, w, c, k > 0)
        out[:, p:p + panel] = c
    return out[:, :len(weight)]


@pytest.mark.parametrize(("channels", "depth"), [(1, 1), (31, 301), (32, 512), (33, 513), (200, 1301)])
def test_a_layer_is_the_product_of_rounded_numbers(kernels, isa, channels, depth):
    """Bit for bit that of rounded weights and rows in float32, and so near the exact one; odd depths, any threads."""
    rng = np.random.default_rng(channels)
    weight = rng.standard_normal((channels, depth), np.float32)
    layer = _native.PackedLinear(weight, "bfloat16_fast", isa)
    exact = rounded(weight).astype(float)
    for rows in (1, 5, 70, 130):
        x = rng.standard_normal((rows, depth), np.float32)
        found, wanted = np.empty((rows, channels), np.float32), by_blocks(kernels, rounded(x), rounded(weight))
        layer(x, found)
        assert np.array_equal(found, wanted), np.abs(found - wanted).max()
        tolerance = (min(depth, BLOCK) + depth / BLOCK + 1) * EPS * (np.abs(rounded(x)) @ np.abs(exact).T)
        assert (np.abs(found - rounded(x) @ exact.T) <= tolerance).all()
        for threads in (2, 3):
            again = np.empty_like(found)
            layer(x, again, threads=threads)
            assert np.array_equal(found, again)
        added = np.ones_like(found)
        layer(x, added, accumulate=True)
        np.testing.assert_allclose(added, found + 1, atol=8 * EPS * float(tolerance.max() / EPS + 1))


@pytest.mark.parametrize(("channels", "depth"), [(1, 1), (31, 301)])
def test_nothing_lies_behind_an_odd_depth(isa, channels, depth):
    """What was in memory before is not multiplied: there were NaNs."""
    for _ in range(5):
        _native.PackedLinear(np.full((channels, depth + 1), np.nan, np.float32), "bfloat16_fast", isa)
        out = np.empty((1, channels), np.float32)
        _native.PackedLinear(np.ones((channels, depth), np.float32), "bfloat16_fast", isa)(np.ones((1, depth), np.float32), out)
        assert (out == depth).all()


def test_subnormal_factors_are_zeros(isa):
    """As the processor's instruction takes them, in every build: 2^100 would make them seen."""
    small, large = np.float32(2.0**-127), np.float32(2.0**100)
    for weight, x in ((small, large), (large, small), (SMALLEST, large)):
        out = np.full((1, 1), 7, np.float32)
        _native.PackedLinear(np.array([[weight, 0]], np.float32), "bfloat16_fast", isa)(np.array([[x, 0]], np.float32), out)
        assert out[0, 0] == (2.0**-26 if weight == SMALLEST else 0)


def test_not_finite_rows_stay_alone(isa):
    """A NaN and an overflow spoil their row and no other. The largest float32 rounds to infinity, as everywhere."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 70), np.float32)
    x[1, 3], x[2, 4], x[3, 5] = np.nan, np.inf, np.finfo(np.float32).max
    layer = _native.PackedLinear(np.abs(rng.standard_normal((40, 70), np.float32)) + 0.1, "bfloat16_fast", isa)
    out, alone = np.empty((5, 40), np.float32), np.empty((1, 40), np.float32)
    layer(x, out)
    assert np.isnan(out[1]).all() and np.isinf(out[2:4]).all()
    for row in (0, 4):
        layer(x[row:row + 1], alone)
        assert np.array_equal(out[row], alone[0]) and np.isfinite(alone).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("d_model", [64, 72])
def test_a_model_is_near_the_exact_one(tmp_path, isa, tied, d_model):
    """Rounding to 8 bits is an error of 2^-9 at most in each factor, of about a third of that in the mean."""
    config = folders.config(n_kv_heads=2, weight_tying=tied, d_model=d_model, mlp_hidden_size=75)
    tensors = folders.tensors(config)
    folders.write(tmp_path, config, tensors, "bfloat16")
    held = {n: t.astype(ml_dtypes.bfloat16).astype(np.float32) for n, t in tensors.items()}
    ids = np.random.default_rng(0).integers(0, 60, 45)
    wanted = oracle.forward(held, config, ids)
    model = LLaDAForCausalLM.from_pretrained(tmp_path, dtype="bfloat16_fast", isa=isa)
    error = np.linalg.norm(model.forward(ids) - wanted) / np.linalg.norm(wanted)
    assert model.dtype == "bfloat16_fast" and 1e-4 < error < 1e-2, error


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_rounds_its_rows(tmp_path, isa, tied):
    """A model whose layers add nothing: logits are the head times the rounded norm of the embedding."""
    config = folders.config(weight_tying=tied)
    tensors = {n: t.astype(ml_dtypes.bfloat16).astype(np.float32) for n, t in folders.tensors(config).items()}
    for name, tensor in tensors.items():
        if name.endswith(("attn_out.weight", "blocks.0.ff_out.weight", "blocks.1.ff_out.weight")):
            tensor[:] = 0
    folders.write(tmp_path, config, tensors)
    ids, embedding = np.arange(50), tensors["model.transformer.wte.weight"]
    h = embedding[ids].astype(float)
    h = (h / np.sqrt((h**2).mean(1, keepdims=True) + config["rms_norm_eps"]) * tensors["model.transformer.ln_f.weight"]).astype(np.float32)
    head = embedding if tied else tensors["model.transformer.ff_out.weight"]
    found = LLaDAForCausalLM.from_pretrained(tmp_path, dtype="bfloat16_fast", isa=isa).forward(ids)
    wanted, tolerance = rounded(h).astype(float) @ head.astype(float).T, (len(h[0]) + 1) * EPS * (np.abs(rounded(h)) @ np.abs(head).T)
    assert (np.abs(found - wanted) <= tolerance).all()


@pytest.mark.parametrize("config", [folders.config(), folders.config(weight_tying=True), llada2.config()])
def test_memory_is_that_of_bfloat16(config):
    """Routers stay float32; the embedding is bfloat16."""
    one, other = (LLaDAForCausalLM.random(config, dtype) for dtype in ("bfloat16", "bfloat16_fast"))
    assert one.memory()["weights"] == other.memory()["weights"]
    assert weight_bytes(one.config, "bfloat16", 64) == weight_bytes(other.config, "bfloat16_fast", 64)
