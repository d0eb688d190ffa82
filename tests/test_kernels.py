"""Every kernel of every build against float64 NumPy: odd sizes, tails, extremes."""
import ml_dtypes
import numpy as np
import pytest

from llada_native import ModelConfig, _native

EPS = np.finfo(np.float32).eps


@pytest.fixture
def kernels(isa):
    return _native.Kernels(isa)


def worst(found, wanted, tolerance):
    """Fails with the worst element."""
    excess = np.abs(found - wanted) - tolerance
    i = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[i] <= 0, f"at {i}: found {found[i]!r}, wanted {wanted[i]!r}, tolerance {np.broadcast_to(tolerance, excess.shape)[i]:.3g}"


@pytest.mark.parametrize("depth", [1, 7, 64, 255, 256])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm(kernels, depth, accumulate):
    rng = np.random.default_rng(depth)
    for rows in [*range(1, 27), 61]:
        a, w = rng.standard_normal((rows, depth), np.float32), rng.standard_normal((depth, kernels.panel), np.float32)
        c = rng.standard_normal((rows, kernels.panel), np.float32)
        wanted = a.astype(float) @ w + (c if accumulate else 0)
        # A chain of n float32 products errs by at most n eps times the sum of their magnitudes.
        tolerance = (depth + 1) * EPS * (np.abs(a).astype(float) @ np.abs(w) + np.abs(c))
        kernels.gemm_f32(a, w, c, accumulate)
        worst(c, wanted, tolerance)


def test_gemm_of_very_many_rows(kernels):
    """Rows times tiles of rows are more than 2**31."""
    rows = 200_000
    a, w = np.arange(rows, dtype=np.float32)[:, None], np.ones((1, kernels.panel), np.float32)
    c = np.empty((rows, kernels.panel), np.float32)
    kernels.gemm_f32(a, w, c)
    assert np.array_equal(c, np.broadcast_to(a, c.shape))


def test_gemm_rows_do_not_depend_on_their_company(kernels):
    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((40, 256), np.float32), rng.standard_normal((256, kernels.panel), np.float32)
    together = np.empty((40, kernels.panel), np.float32)
    kernels.gemm_f32(a, w, together)
    for rows in range(1, 40):
        alone = np.empty((rows, kernels.panel), np.float32)
        kernels.gemm_f32(np.ascontiguousarray(a[40 - rows:]), w, alone)
        assert np.array_equal(alone, together[40 - rows:])


LOGITS = {
    "normal": lambda rng, n: rng.standard_normal(n) * 5,
    "ties": lambda rng, n: rng.integers(0, 3, n),
    "suppressed": lambda rng, n: np.where(rng.random(n) < 0.5, -np.inf, rng.standard_normal(n)),
    "far apart": lambda rng, n: rng.choice([0, -300, -700, -709, -1000, -3e38], n),
    "nothing": lambda rng, n: np.full(n, -np.inf),
}


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100, 4096])
@pytest.mark.parametrize("kind", LOGITS)
def test_statistics_of_a_row(kernels, kind, n):
    for seed in range(5):
        x = LOGITS[kind](np.random.default_rng(seed), n + 1).astype(np.float32)[1:]  # unaligned
        most, index, second, nan = kernels.extremes(x)
        ordered = np.sort(x)[::-1]
        assert most == ordered[0] and not nan
        assert second == (ordered[1] if n > 1 else -np.inf)
        assert index == (np.argmax(x) if most > -np.inf else -1)
        if most == -np.inf:
            continue
        total, moment = kernels.softmax_sums(x, most)
        distance = x.astype(float) - most
        terms = np.where(distance > -708, np.exp(np.maximum(distance, -708)), 0)  # below, the kernel counts nothing
        # Each exponential errs by two units in the last place, a sum of n by n more at most, whose parts have one sign.
        tolerance = (n + 2) * 2.0**-52
        assert abs(total - terms.sum()) <= tolerance * terms.sum()
        wanted = terms * np.maximum(distance, -708)
        assert abs(moment - wanted.sum()) <= tolerance * np.abs(wanted).sum()
        assert (total, moment) == _native.Kernels("scalar").softmax_sums(x, most)


@pytest.mark.parametrize("place", [0, 1, 16, 36])
def test_a_nan_among_logits_is_seen(kernels, place):
    x = np.arange(37, dtype=np.float32)
    x[place] = np.nan
    assert kernels.extremes(x)[3]


def test_exponentials_over_their_whole_range(kernels):
    """Each alone, against NumPy: two units in the last place."""
    for x in np.concatenate([np.linspace(-707.9, 0, 2001), -np.logspace(-20, 2, 500)]).astype(np.float32):
        total, _ = kernels.softmax_sums(np.array([x]), 0.0)
        wanted = np.exp(float(x))
        assert abs(total - wanted) <= 2 * np.spacing(wanted), x


@pytest.mark.parametrize("n", [1, 3, 8, 15, 16, 17, 33, 100])
def test_widen_bfloat16_is_exact(kernels, n):
    bits = np.random.default_rng(n).integers(0, 1 << 16, n).astype(np.uint16)
    out = np.empty(n, np.float32)
    kernels.widen_bf16(bits, out)
    assert np.array_equal(out.view(np.uint32), bits.view(ml_dtypes.bfloat16).astype(np.float32).view(np.uint32))


def test_widen_float16_is_exact(kernels):
    """Every code, the same bits; of a NaN the quiet bit may be set."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    wanted = bits.view(np.float16).astype(np.float32)
    assert np.isinf(wanted[0x7C00]) and wanted[1] == 2.0**-24 and wanted[0x7BFF] == 65504
    out = np.empty(1 << 16, np.float32)
    kernels.widen_f16(bits, out)
    quiet = np.where(np.isnan(wanted), 1 << 22, 0).astype(np.uint32)
    assert np.array_equal(out.view(np.uint32) | quiet, wanted.view(np.uint32) | quiet)


@pytest.mark.parametrize("n", [1, 3, 8, 15, 16, 17, 33, 100])
def test_widen_float16_has_tails(kernels, n):
    bits = np.random.default_rng(n).integers(0, 0x7C00, n + 1).astype(np.uint16)
    out = np.full(n + 1, 7, np.float32)
    kernels.widen_f16(bits[1:], out[:n])  # unaligned
    assert np.array_equal(out[:n], bits[1:].view(np.float16).astype(np.float32)) and out[n] == 7


def test_narrow_float16_rounds_to_nearest(kernels):
    """Every float16, what lies halfway to the next one and its neighbours on both sides; beyond the largest; random floats; NaN."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = halves + np.diff(np.append(halves, np.float32(65536))) / 2
    assert middle[-1] == 65520
    x = np.concatenate([halves, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf)),
                        np.array([65536, 1e10, np.inf, 1e-45, 1e-40, 2**-25], np.float32),
                        np.random.default_rng(0).integers(0, 0x7F800000, 100_000).astype(np.uint32).view(np.float32)])
    x = np.concatenate([x, -x])
    out = np.empty(len(x), np.uint16)
    kernels.narrow_f16(x, out)
    with np.errstate(over="ignore", under="ignore"):
        assert np.array_equal(out, x.astype(np.float16).view(np.uint16))
    nans = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    kernels.narrow_f16(nans, out[:4])
    assert np.isnan(out[:4].view(np.float16)).all() and (out[:4] >> 15).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("n", [1, 3, 8, 15, 16, 17, 33, 100])
def test_narrow_float16_has_tails(kernels, n):
    x = np.random.default_rng(n).standard_normal(n + 1).astype(np.float32)
    out = np.full(n + 1, 7, np.uint16)
    kernels.narrow_f16(x[1:], out[:n])  # unaligned
    assert np.array_equal(out[:n], x[1:].astype(np.float16).view(np.uint16)) and out[n] == 7


@pytest.mark.parametrize("n", [1, 5, 31, 64, 65, 128, 4096])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e4])
def test_rms_norm(kernels, n, scale):
    rng = np.random.default_rng(n)
    x, weight = (rng.standard_normal(n) * scale).astype(np.float32), rng.uniform(0.7, 1.3, n).astype(np.float32)
    out = np.empty(n, np.float32)
    kernels.rms_norm_f32(x, weight, out, 1e-5)
    wide = x.astype(float)
    wanted = wide / np.sqrt(np.mean(wide**2) + np.float32(1e-5)) * weight
    # The sum of squares is a chain of n / lanes additions over at least 4 lanes; root, quotient and products add 5 roundings.
    worst(out, wanted, (n / 8 + 6) * EPS * np.abs(wanted))


@pytest.mark.parametrize("n", [1, 2, 7, 16, 19, 384])
def test_silu_mul(kernels, n):
    rng = np.random.default_rng(n)
    gate = (rng.standard_normal(n) * 20).astype(np.float32)
    gate[: min(n, 4)] = [0.0, -200.0, 200.0, -1e-30][: min(n, 4)]
    up = rng.standard_normal(n).astype(np.float32)
    wide = gate.astype(float)
    wanted = wide * np.exp(-np.logaddexp(0, -wide)) * up
    kernels.silu_mul_f32(gate, up)
    # The exponential errs by 2.5e-7 (see kernels-inl.h) and is clamped at e^88.3: below -88 the result is some 1e-37.
    worst(gate, wanted, 4e-7 * np.abs(wanted) + 1e-35)


@pytest.mark.parametrize("half", [1, 3, 8, 16, 20, 64])
def test_rope(kernels, half):
    rng = np.random.default_rng(half)
    x, angle = rng.standard_normal(2 * half).astype(np.float32), rng.uniform(-9, 9, half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    low, high = x[:half].astype(float), x[half:].astype(float)
    wanted = np.concatenate([low * cos - high * sin, high * cos + low * sin])
    kernels.rope_f32(x, cos, sin)
    worst(x, wanted, 2 * EPS * np.tile(np.abs(low) + np.abs(high), 2))


def attention(kernels, q, k, v, scale, hidden=None):
    """Packs keys and values as ops/attention.cpp does and runs one tile."""
    keys, dim = k.shape
    panel = kernels.panel
    panels, width = -(-keys // panel), -(-dim // panel) * panel
    padded = np.full((panels * panel, dim), np.nan, np.float32)  # what lies behind the keys must not matter
    padded[:keys] = k
    wide = np.zeros((keys, width), np.float32)
    wide[:, :dim] = v
    out = np.empty_like(q)
    kernels.attention_f32(q, np.ascontiguousarray(padded.reshape(panels, panel, dim).swapaxes(1, 2)), wide, out, scale,
                          None if hidden is None else np.array(hidden, np.int32))
    return out


def exact_attention(q, k, v, scale, hidden=None):
    """In float64, and what the kernel may differ by."""
    keys, dim = k.shape
    scores = q.astype(float) @ k.T * scale
    if hidden is not None:
        scores[np.arange(keys) == np.array(hidden)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    # Scores err by dim eps times their magnitudes, which the exponential turns into relative error; the two sums over keys and the
    # exponential itself (2.5e-7) add theirs.
    score_error = (dim + 2) * EPS * (np.abs(q) @ np.abs(k).T * scale).max(1, keepdims=True)
    return weights @ v.astype(float), (2 * score_error + 1e-6 + keys * EPS) * (weights @ np.abs(v)) + 1e-12


@pytest.mark.parametrize("dim", [2, 16, 24, 32, 64, 128, 256])
@pytest.mark.parametrize("keys", [1, 5, 31, 32, 33, 64, 65, 200])
def test_attention(kernels, dim, keys):
    rng = np.random.default_rng(keys)
    rows = kernels.attention_rows - keys % 3
    q, k, v = (rng.standard_normal((n, dim), np.float32) for n in (rows, keys, keys))
    worst(attention(kernels, q, k, v, dim**-0.5), *exact_attention(q, k, v, dim**-0.5))


def test_attention_survives_extreme_scores(kernels):
    """One key dominates by hundreds, early or late: no overflow, and the others weigh nothing."""
    for loud in (0, 70, 129):
        k = np.zeros((130, 32), np.float32)
        k[loud, 0] = 1000
        q = np.zeros((1, 32), np.float32)
        q[0, 0] = 1
        v = np.random.default_rng(0).standard_normal((130, 32)).astype(np.float32)
        worst(attention(kernels, q, k, v, 1.0)[0], v[loud].astype(float), 1e-6)


def test_attention_rows_do_not_depend_on_their_company(kernels):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, 32), np.float32) for n in (kernels.attention_rows, 100, 100))
    together = attention(kernels, q, k, v, 0.2)
    for r in range(len(q)):
        assert np.array_equal(attention(kernels, np.ascontiguousarray(q[r:r + 1]), k, v, 0.2)[0], together[r])


@pytest.mark.parametrize("dim", [2, 24, 128])
@pytest.mark.parametrize("keys", [2, 3, 33, 127, 128, 129, 130, 256, 257, 300])
def test_attention_with_a_hidden_key(kernels, dim, keys):
    """First, last, at the edges of a block (the last one may hold nothing else), none; the loudest of all; NaN and infinite."""
    rng, rows = np.random.default_rng(keys), kernels.attention_rows
    q, k, v = (rng.standard_normal((n, dim), np.float32) for n in (rows, keys, keys))
    hidden = np.resize([*(key for key in (0, keys - 1, 127, 128, keys // 2) if key < keys), -1], rows)
    together = attention(kernels, q, k, v, dim**-0.5, hidden)
    worst(together, *exact_attention(q, k, v, dim**-0.5, hidden))
    for r, key in enumerate(hidden):
        if key < 0:
            assert np.array_equal(together[r], attention(kernels, q[r:r + 1], k, v, dim**-0.5)[0])
            continue
        for wrong in ((1000 * q[r], v[key]), (np.nan, np.nan), (np.inf, -np.inf), (k[key], np.nan)):
            other_k, other_v = k.copy(), v.copy()
            other_k[key], other_v[key] = wrong
            assert np.array_equal(together[r], attention(kernels, q[r:r + 1], other_k, other_v, dim**-0.5, [key])[0])
        changed = v.copy()
        changed[key - 1] += 1e4  # another is seen
        assert not np.array_equal(together[r], attention(kernels, q[r:r + 1], k, changed, dim**-0.5, [key])[0])


def test_a_hidden_key_is_not_the_maximum(kernels):
    """Scores far below that of the hidden key, and far below 0: weights are those of the other keys all the same."""
    rng, keys, dim = np.random.default_rng(0), 140, 32
    q, k, v = (rng.standard_normal((n, dim), np.float32) for n in (kernels.attention_rows, keys, keys))
    q[:, 0], k[:, 0], hidden = 1, -1000, rng.integers(0, keys, len(q))
    worst(attention(kernels, q, k, v, 1.0, hidden), *exact_attention(q, k, v, 1.0, hidden))


@pytest.mark.parametrize("threads", [-1, 0, 1025])
def test_threads_of_a_layer(threads):
    layer = _native.PackedLinear(np.ones((1, 1), np.float32), "float32")
    with pytest.raises(ValueError, match=f"threads: expected 1 to 1024, found {threads}"):
        layer(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), threads)


@pytest.mark.resident
def test_weights_beyond_an_address():
    """More bytes than 63 bits count, where no operating system was asked for the memory there is."""
    shape = ModelConfig(n_layers=1 << 13, d_model=1 << 24, n_heads=1 << 17, n_kv_heads=1 << 17, mlp_hidden_size=1 << 24, vocabulary=64,
                        max_sequence_length=64, rope_theta=1e4, rms_norm_eps=1e-5, weight_tying=True)
    with pytest.raises(MemoryError):
        _native.NativeModel(shape, "float32", 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("channels", "depth"), [(1, 1), (31, 300), (32, 256), (33, 257), (200, 1000)])
def test_linear(isa, dtype, channels, depth):
    rng = np.random.default_rng(channels)
    weight = rng.standard_normal((channels, depth), np.float32)
    layer = _native.PackedLinear(weight, dtype, isa)
    exact = weight.astype(dtype).astype(float)
    for rows in (1, 5, 70, 130):
        x = rng.standard_normal((rows, depth), np.float32)
        first = np.empty((rows, channels), np.float32)
        layer(x, first)
        worst(first, x @ exact.T, (min(depth, 256) + depth / 256 + 1) * EPS * (np.abs(x) @ np.abs(exact).T))
        for threads in (2, 3):
            again = np.empty_like(first)
            layer(x, again, threads=threads)
            assert np.array_equal(first, again)
        added = x[:, :1] @ np.ones((1, channels), np.float32)
        wanted = first + added
        layer(x, added, accumulate=True)
        worst(added, wanted.astype(float), 8 * EPS * (np.abs(x) @ np.abs(exact).T + np.abs(wanted)))


@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_of_every_dtype_are_read_exactly(isa, source):
    """An identity activation reads the weights back: subnormals and the largest numbers too."""
    bits = np.arange(0, 1 << 16, 37)[:1024].astype(np.uint16)
    values = bits.view(source) if source != np.float32 else bits.view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaNs among the patterns
        values = np.where(np.isfinite(values), values, 0).astype(source).reshape(32, 32)
    layer = _native.PackedLinear(values, "float32", isa)
    out = np.empty((32, 32), np.float32)
    layer(np.eye(32, dtype=np.float32), out)
    assert np.array_equal(out, values.astype(np.float32).T)


def test_rounding_to_bfloat16_is_to_nearest_even(isa):
    values = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    values.reshape(-1).view(np.uint32)[:500] = (np.arange(500, dtype=np.uint32) << 15) + 0x3F800000  # ties among them
    layer = _native.PackedLinear(values, "bfloat16", isa)
    out = np.empty((32, 64), np.float32)
    layer(np.eye(32, dtype=np.float32), out)
    assert np.array_equal(out, values.astype(ml_dtypes.bfloat16).astype(np.float32).T)


def read_back(values, dtype, isa):
    """What a layer holds: an identity activation reads it, exactly."""
    out = np.empty((values.shape[1], values.shape[0]), np.float32)
    _native.PackedLinear(values, dtype, isa)(np.eye(values.shape[1], dtype=np.float32), out)
    return out.T


def test_float16_is_kept_as_it_is(isa):
    """Every finite code, and the neighbours of each tie between them from float32."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = codes[np.isfinite(codes)].reshape(-1, 32)
    assert np.array_equal(read_back(finite, "float16", isa), finite.astype(np.float32))
    positive = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (positive[:-1] + positive[1:]) / 2  # exact in float32
    values = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(1e9)), [0, 1e-45, 2.0**-126]])
    values = np.concatenate([values, -values, np.zeros(-2 * len(values) % 32)]).astype(np.float32).reshape(-1, 32)
    assert np.array_equal(read_back(values, "float16", isa), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("source", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [65536, -65536, 3.3e38])
def test_what_float16_cannot_hold_is_refused(source, value):
    values = np.zeros((40, 32), source)
    values[33, 5] = value
    with pytest.raises(OverflowError, match=r"at most 65504 in magnitude for float16, found .*; bfloat16") as refused:
        _native.PackedLinear(values, "float16")
    found = str(refused.value).split("found ")[1].split(";")[0]
    assert np.float32(found) == np.float32(values[33, 5])
    assert np.array_equal(read_back(values, "float32", ""), values.astype(np.float32))
    assert np.array_equal(read_back(values, "bfloat16", ""), values.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_the_ends_of_float16():
    """65504 is the last; what rounds to it is refused too, infinities and NaN are damage to be seen later, as in other formats."""
    values = np.zeros((4, 32), np.float32)
    values[0, :2] = 65504, -65504
    assert np.array_equal(read_back(values, "float16", ""), values)
    values[1, 7] = np.nextafter(np.float32(65504), np.float32(1e9))
    with pytest.raises(OverflowError, match=r"found 65504\.0039"):
        _native.PackedLinear(values, "float16")
    for damage in (np.inf, -np.inf, np.nan):
        values[1, 7] = damage
        out, x = np.empty((1, 4), np.float32), np.zeros((1, 32), np.float32)
        x[0, 7] = 1
        _native.PackedLinear(values, "float16")(x, out)
        assert np.array_equal(out[0], [0, damage, 0, 0], equal_nan=True)
