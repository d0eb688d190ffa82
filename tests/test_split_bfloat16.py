"""float32 activations as sums of three bfloat16 numbers, beside bfloat16 weights: float32 arithmetic on tile registers."""
import ml_dtypes
import numpy as np
import pytest
from bfloat16 import paired, rounded

from llada_native import _native

EPS = np.finfo(np.float32).eps
BLOCK = 512  # depths of one chain of sums
PARTS = 3


@pytest.fixture
def kernels(isa):
    found = _native.Kernels(isa)
    if not found.has_gemm_split_bf16:
        with pytest.raises(ValueError, match="split_pairs: not in this build"):
            found.split_pairs(np.zeros(1, np.float32), np.zeros((PARTS, 16), np.uint16))
        pytest.skip("float32 as it is")
    return found


def split(kernels, x):
    """Parts [PARTS, n] of x [n] as float32, read from the pairs."""
    n = -(-len(x) // 16) * 16
    out = np.full((PARTS, n + 2), 7, np.uint16)
    kernels.split_pairs(x, out)
    assert (out[:, n:] == 7).all()
    numbers = out[:, :n].reshape(PARTS, -1, 2)[:, :, ::-1].reshape(PARTS, -1).astype(np.uint32) << 16
    assert not numbers[:, len(x):].any()
    return numbers.view(np.float32)[:, :len(x)]


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 1000])
def test_the_parts_of_a_number_are_exact(kernels, n):
    """24 binary digits in three times eight, whatever the size; the largest float32 among them, which would round to infinity."""
    rng = np.random.default_rng(n)
    x = (rng.standard_normal(n) * 2.0 ** rng.integers(-90, 100, n)).astype(np.float32)
    x[0] = np.finfo(np.float32).max
    parts = split(kernels, x)
    assert np.isfinite(parts).all() and np.array_equal(parts.astype(float).sum(0), x.astype(float))


def test_what_is_not_finite_is_one_part(kernels):
    """Infinity less infinity would be NaN, and of a NaN whose digits are all in the lower half infinity would be left."""
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    x = np.concatenate([x, np.array([0x7F800001, 0xFF80FFFF], np.uint32).view(np.float32)])
    first, *rest = split(kernels, x)
    assert np.array_equal(first[:2], x[:2]) and np.isnan(first[[2, 5, 6]]).all() and (first[3:5] == 0).all()
    assert not np.any(rest)


@pytest.mark.parametrize("depth", [32, 64, 512])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm_is_that_of_float32(kernels, depth, accumulate):
    """Within half a unit in the last place for each sum: 3 depth / 32 times two chains of 16, their sum and the total."""
    rng = np.random.default_rng(depth)
    for rows in [*range(1, 36), 48, 61]:
        a, w = rng.standard_normal((rows, depth), np.float32), rounded(rng.standard_normal((depth, kernels.panel), np.float32))
        pairs, planes = np.ascontiguousarray(paired(w.T).transpose(1, 0, 2)), np.empty((rows, PARTS, depth), np.uint16)
        for row, out in zip(a, planes, strict=True):
            kernels.split_pairs(row, out)
        c = np.full((rows, kernels.panel), 0.25, np.float32)
        kernels.gemm_bf16(planes.reshape(rows, -1), pairs, c, accumulate, PARTS)
        error = np.abs(c - (a.astype(float) @ w.astype(float) + 0.25 * accumulate))
        tolerance = (PARTS * (depth // 32) + 18) * EPS / 2 * (np.abs(a) @ np.abs(w) + 0.25)
        assert (error <= tolerance).all(), (error / tolerance).max()


@pytest.mark.parametrize(("channels", "depth"), [(1, 1), (31, 301), (32, 512), (33, 513), (200, 1301)])
def test_a_layer_multiplies_in_float32(kernels, isa, channels, depth):
    """Activations keep their 24 digits: with 8 the error would be a thousand times the tolerance. Any rows, any threads, the same bits."""
    rng = np.random.default_rng(channels)
    weight = rng.standard_normal((channels, depth), np.float32).astype(ml_dtypes.bfloat16)
    layer, exact = _native.PackedLinear(weight, "bfloat16", isa), weight.astype(float)
    x = rng.standard_normal((230, depth), np.float32)
    alone = np.empty((1, channels), np.float32)
    for rows in (1, 5, 16, 17, 70, 230):
        found = np.empty((rows, channels), np.float32)
        layer(x[:rows], found)
        added = np.ones_like(found)
        layer(x[:rows], added, accumulate=True)
        sums = PARTS * min(depth, BLOCK) / 32 + depth / BLOCK + 19
        for out, start in ((found, 0), (added, 1)):
            tolerance = sums * EPS / 2 * (np.abs(x[:rows]) @ np.abs(exact).T + start)
            error = np.abs(out - (x[:rows].astype(float) @ exact.T + start))
            assert (error <= tolerance).all(), (error / tolerance).max()
        for threads in (2, 3):
            again = np.empty_like(found)
            layer(x[:rows], again, threads=threads)
            assert np.array_equal(found, again)
        layer(x[rows - 1:rows], alone)
        assert np.array_equal(found[-1], alone[0])


def test_not_finite_rows_stay_alone(kernels, isa):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 70), np.float32)
    x[1, 3], x[2, 4], x[3, 5] = np.nan, np.inf, np.finfo(np.float32).max
    weight = (np.abs(rng.standard_normal((40, 70), np.float32)) * 0.01 + 0.001).astype(ml_dtypes.bfloat16)
    layer = _native.PackedLinear(weight, "bfloat16", isa)
    out, alone = np.empty((5, 40), np.float32), np.empty((1, 40), np.float32)
    layer(x, out)
    assert np.isnan(out[1]).all() and np.isinf(out[2]).all() and np.isfinite(out[[0, 3, 4]]).all()
    for row in (0, 3, 4):
        layer(x[row:row + 1], alone)
        assert np.array_equal(out[row], alone[0])
