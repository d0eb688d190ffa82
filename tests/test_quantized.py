"""Integer weights: the kernels against exact NumPy integers, packing, quantisation, layers and models."""
from pathlib import Path

import folders
import moe
import numpy as np
import pytest

from llada_native import LLaDAForCausalLM, _native

FORMATS = [("int8", 32), ("int8", 64), ("int8", 128), ("int4", 32), ("int4", 64), ("int4", 128)]
BITS = {"int8": 8, "int4": 4}
ZERO = {8: 128, 4: 8}
LOWEST = {8: 1, 4: 0}  # of the codes
HIGHEST = {8: 255, 4: 15}
LARGEST = {8: 127, 4: 120}  # of the activations beside them
# A chain of float32 multiply-adds over g groups, each within half a unit in the last place of what it holds so far.
EPSILON = 2.0**-24


def operands(kernels, bits, rows, groups, group, fill="random", seed=0):
    rng = np.random.default_rng(seed)
    depth = groups * group
    x = rng.integers(-LARGEST[bits], LARGEST[bits] + 1, (rows, depth)).astype(np.int8)
    w = rng.integers(LOWEST[bits], HIGHEST[bits] + 1, (depth // 4, kernels.panel, 4)).astype(np.uint8)
    if fill == "extremes":  # the largest sums there are, of both signs
        x[:] = np.where(np.arange(rows)[:, None] % 2, LARGEST[bits], -LARGEST[bits])
        w[:] = np.where(np.arange(kernels.panel)[:, None] % 2, HIGHEST[bits], LOWEST[bits])
    elif fill == "zeros":
        x[:] = 0
    return x, w


def prepared(bits, x, x_scales):
    """What a tile takes of x [rows, depth] with scales [groups, rows]: beside 8-bit weights those and the sums of x, beside 4-bit ones
    1.5 * 2^23 times the scales, which are powers of two, and the bits of that less 8 times the sums."""
    sums = np.ascontiguousarray(x.reshape(len(x), len(x_scales), -1).sum(2, dtype=np.int32).T)
    if bits == 8:
        return x_scales, sums
    bases = np.float32(1.5 * 2**23) * x_scales
    return bases, bases.view(np.int32) - 8 * sums


def winograd_starts(x, bases):
    """The bits of the bases less the sum of x1 (x2 + 128), x1 and x2 being every other four depths."""
    first, second = np.moveaxis(x.astype(np.int32).reshape(len(x), len(bases), -1, 2, 4), 3, 0)
    return bases.view(np.int32) - np.ascontiguousarray((first * (second + 128)).sum((2, 3), dtype=np.int32).T)


def random_scales(bits, rng, shape):
    scales = rng.uniform(0.01, 2, shape) if bits == 8 else 2.0 ** rng.integers(-20, 4, shape)
    return scales.astype(np.float32)


def weight_scales(rng, groups, kernels):
    """[groups, panel] that float16 holds, as they are stored."""
    return rng.normal(size=(groups, kernels.panel)).astype(np.float16).astype(np.float32)


def scale_of(dtype, group):
    """Of activations [rows, group], [rows]: the finest, or the power of two next to it."""
    fine = np.abs(group).max(1) / np.float32(LARGEST[BITS[dtype]])
    return fine if dtype == "int8" else np.exp2(np.ceil(np.log2(fine.astype(float)))).astype(np.float32)


def exact(bits, x, w, x_scales, w_scales, group):
    """Float64, from exact integer sums."""
    rows, depth = x.shape
    weight = w.transpose(0, 2, 1).reshape(depth, -1).astype(np.int64) - ZERO[bits]
    out = np.zeros((rows, w.shape[1]))
    for g in range(depth // group):
        part = slice(g * group, (g + 1) * group)
        out += (x[:, part].astype(np.int64) @ weight[part]) * x_scales[g, :, None].astype(float) * w_scales[g].astype(float)
    return out


@pytest.mark.parametrize("fill", ["random", "extremes", "zeros"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_integer_sums_are_exact(isa, bits, group, fill):
    """With scales of 1 every result is an integer that float32 holds: all builds agree to the bit with NumPy's."""
    kernels = _native.Kernels(isa)
    for rows in range(1, 15):
        x, w = operands(kernels, bits, rows, 3, group, fill, rows)
        ones = np.ones((3, rows), np.float32), np.ones((3, kernels.panel), np.float32)
        x_scales, sums = prepared(bits, x, ones[0])
        c = np.full((rows, kernels.panel), 5, np.float32)
        kernels.gemm_quantized(bits, x, x_scales, sums, w, ones[1], c)
        wanted = exact(bits, x, w, *ones, group)
        assert np.abs(wanted).max() < 2**24
        assert np.array_equal(c, wanted)
        kernels.gemm_quantized(bits, x, x_scales, sums, w, ones[1], c, True)
        assert np.array_equal(c, 2 * wanted)


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_and_groups(isa, bits):
    kernels, rng = _native.Kernels(isa), np.random.default_rng(1)
    x, w = operands(kernels, bits, 13, 4, 64)
    x_scales, w_scales = random_scales(bits, rng, (4, 13)), weight_scales(rng, 4, kernels)
    c = np.empty((13, kernels.panel), np.float32)
    kernels.gemm_quantized(bits, x, *prepared(bits, x, x_scales), w, w_scales, c)
    wanted = exact(bits, x, w, x_scales, w_scales, 64)
    size = exact(bits, np.abs(x), (np.abs(w.astype(int) - ZERO[bits]) + ZERO[bits]), x_scales, np.abs(w_scales), 64)
    error = np.abs(c - wanted) / (size * 8 * EPSILON)  # two roundings a group
    assert error.max() < 1, np.unravel_index(error.argmax(), error.shape)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("fill", ["random", "extremes"])
def test_weights_that_are_still_packed(isa, group, fill):
    """The bits of unpacked ones."""
    kernels, rng = _native.Kernels(isa), np.random.default_rng(6)
    for rows in range(1, 15):
        x, w = operands(kernels, 4, rows, 3, group, fill, rows)
        w_scales, packed = weight_scales(rng, 3, kernels), w[0::2] | w[1::2] << 4
        x_scales, sums = prepared(4, x, random_scales(4, rng, (3, rows)))
        c, wanted = (np.full((rows, kernels.panel), 5, np.float32) for _ in range(2))
        kernels.gemm_quantized(4, x, x_scales, sums, packed, w_scales, c, True)
        kernels.gemm_quantized(4, x, x_scales, sums, w, w_scales, wanted, True)
        assert c.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("fill", ["random", "extremes", "zeros"])
def test_winograds_inner_product(isa, group, fill):
    """Exact integers where scales are 1, and the bits of the plain products where they are not; rows in one tile and in several."""
    kernels, rng = _native.Kernels(isa), np.random.default_rng(7)
    if not kernels.has_gemm_winograd:
        pytest.skip("not in this build, or not for this processor")
    for rows in [*range(1, 26), 100]:
        x, w = operands(kernels, 4, rows, 3, group, fill, rows)
        if fill == "extremes" and rows % 2:  # of both signs in one row too
            x[:] = rng.choice([-120, 120], x.shape)
            w[:] = rng.choice([0, 15], w.shape)
        packed, ones = w[0::2] | w[1::2] << 4, np.ones((3, kernels.panel), np.float32)
        bases, _ = prepared(4, x, np.ones((3, rows), np.float32))
        c = np.full((rows, kernels.panel), 5, np.float32)
        kernels.gemm_quantized(4, x, bases, winograd_starts(x, bases), packed, ones, c, winograd=True)
        assert np.array_equal(c, exact(4, x, w, np.ones((3, rows)), ones, group)), rows
        w_scales = weight_scales(rng, 3, kernels)
        bases, starts = prepared(4, x, random_scales(4, rng, (3, rows)))
        wanted = c.copy()
        kernels.gemm_quantized(4, x, bases, starts, packed, w_scales, wanted, True)
        kernels.gemm_quantized(4, x, bases, winograd_starts(x, bases), packed, w_scales, c, True, winograd=True)
        assert c.tobytes() == wanted.tobytes(), rows


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("fill", ["random", "extremes"])
@pytest.mark.parametrize("bits", [4, 8])
def test_tile_registers(bits, group, fill):
    """Exact integers where scales are 1, and the bits of a build without tiles where they are not; equal tiles of rows and unequal ones."""
    if not _native.isas().get("avx512amx"):
        pytest.skip("no tile registers")
    kernels, others, rng = _native.Kernels("avx512amx"), _native.Kernels("avx512vnni"), np.random.default_rng(8)
    assert kernels.has_tiles and not others.has_tiles and kernels.panel == others.panel
    for rows in [*range(1, 50), 100]:
        x, w = operands(kernels, bits, rows, 3, group, fill, rows)
        ones, c = np.ones((3, kernels.panel), np.float32), np.full((rows, kernels.panel), 5, np.float32)
        kernels.gemm_quantized(bits, x, *prepared(bits, x, np.ones((3, rows), np.float32)), w, ones, c)
        assert np.array_equal(c, exact(bits, x, w, np.ones((3, rows)), ones, group)), rows
        operand = *prepared(bits, x, random_scales(bits, rng, (3, rows))), w, weight_scales(rng, 3, kernels)
        wanted = c.copy()
        kernels.gemm_quantized(bits, x, *operand, c, True)
        others.gemm_quantized(bits, x, *operand, wanted, True)
        assert c.tobytes() == wanted.tobytes(), rows


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says which processor this is")
def test_tile_registers_are_used():
    """Where the processor has them, unless LLADA_ISA says otherwise, and for as many rows as a block has."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    kernels = _native.Kernels(_native.active_isa())
    assert kernels.has_tiles == ({"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"} <= flags and _native.active_isa() == "avx512amx")
    assert not kernels.has_tiles or max(kernels.packed_rows.values()) < 32


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says which processor this is")
def test_winograds_inner_product_is_used():
    """Where additions have ports of their own, and there for as many rows as the layers here have."""
    cpu, kernels = Path("/proc/cpuinfo").read_text(), _native.Kernels(_native.active_isa())
    wanted = "AuthenticAMD" in cpu and {"avx512_bf16", "avx512_vnni", "gfni"} <= set(cpu.split()) and _native.active_isa() == "avx512bf16"
    assert kernels.has_gemm_winograd == wanted
    assert not wanted or (max(kernels.packed_rows.values()) < 209 and kernels.packed_rows[64] == kernels.packed_rows[128] < 23)


def test_a_row_does_not_depend_on_the_others(isa):
    kernels, rng = _native.Kernels(isa), np.random.default_rng(2)
    x, w = operands(kernels, 4, 29, 2, 64)
    w_scales = weight_scales(rng, 2, kernels)
    x_scales, sums = prepared(4, x, random_scales(4, rng, (2, 29)))
    together = np.empty((29, kernels.panel), np.float32)
    kernels.gemm_quantized(4, x, x_scales, sums, w, w_scales, together)
    for r in range(29):
        alone = np.empty((1, kernels.panel), np.float32)
        kernels.gemm_quantized(4, x[r:r + 1], x_scales[:, r:r + 1].copy(), sums[:, r:r + 1].copy(), w, w_scales, alone)
        assert np.array_equal(alone[0], together[r])


def test_unpacking(isa):
    kernels = _native.Kernels(isa)
    packed = np.random.default_rng(0).integers(0, 256, kernels.panel * 4 * 6).astype(np.uint8)
    out = np.empty(2 * len(packed), np.uint8)
    kernels.unpack_u4(packed, out)
    pairs = packed.reshape(6, 1, kernels.panel, 4)
    assert np.array_equal(out.reshape(6, 2, kernels.panel, 4), np.concatenate([pairs & 15, pairs >> 4], axis=1))


@pytest.mark.parametrize("n", [1, 7, 31, 32, 33, 64, 100, 128, 300])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_activations(isa, n, group):
    """Half a step of the scale at most, the sum of what was stored, zeros after the end."""
    kernels, rng = _native.Kernels(isa), np.random.default_rng(n)
    buffer = rng.normal(size=n + 1).astype(np.float32) * 3
    x = buffer[1:]  # unaligned
    groups = -(-n // group)
    q, scales, sums = np.full(groups * group, 99, np.int8), np.empty(groups, np.float32), np.empty(groups, np.int32)
    kernels.quantize_q8(x, q, scales, sums, group)
    padded = np.zeros(groups * group, np.float32)
    padded[:n] = x
    wanted = np.abs(padded.reshape(groups, group)).max(1) / 127
    np.testing.assert_allclose(scales, wanted, rtol=2e-7)
    error = np.abs(q.reshape(groups, group) * scales[:, None].astype(float) - padded.reshape(groups, group))
    assert (error <= scales[:, None] * 0.50001).all()
    assert (np.abs(q.astype(int)).reshape(groups, group).max(1) == 127).all()
    assert np.array_equal(sums, q.reshape(groups, group).sum(1, dtype=np.int32)) and not q[n:].any()


@pytest.mark.parametrize("n", [1, 7, 31, 32, 33, 64, 100, 128, 300])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_activations_beside_4_bit_weights(isa, n, group):
    """A power of two for a scale, less than twice as coarse as the finest one; half a step at most."""
    kernels, rng = _native.Kernels(isa), np.random.default_rng(n)
    for size in (1e-30, 1e-3, 3, 120, 128, 1e30):
        x = (rng.normal(size=n + 1) * size).astype(np.float32)[1:]  # unaligned
        groups = -(-n // group)
        q, bases, starts = np.full(groups * group, 99, np.int8), np.empty(groups, np.float32), np.empty(groups, np.int32)
        winograd = np.empty(groups, np.int32)
        kernels.quantize_q8_for_u4(x, q, bases, starts, group, winograd)
        padded = np.zeros((groups, group))
        padded.reshape(-1)[:n] = x
        scales = bases.astype(float) / (1.5 * 2**23)
        finest = np.abs(padded).max(1) / 120
        held = finest >= 1e-30 / 120
        assert (np.frexp(scales[held])[0] == 0.5).all() and not scales[~held].any()
        assert (scales[held] >= finest[held] * (1 - EPSILON)).all() and (scales[held] < 2 * finest[held]).all()
        codes = q.reshape(groups, group).astype(int)
        assert (np.abs(codes * scales[:, None] - padded)[held] <= scales[held, None] / 2).all() and not codes[~held].any()
        assert np.array_equal(starts, bases.view(np.int32) - 8 * codes.sum(1)) and not q[n:].any()
        assert np.array_equal(winograd, winograd_starts(q[None], bases[:, None])[:, 0])


@pytest.mark.parametrize("power", [-90, -1, 0, 5, 104])
def test_the_next_power_of_two(isa, power):
    """120 times a power of two has that power for a scale, and what is above it the next one."""
    edge = np.float32(120 * 2.0**power)
    above = np.nextafter(np.nextafter(edge, np.float32(np.inf)), np.float32(np.inf))
    for value, scale, code in ((edge, 2.0**power, 120), (above, 2.0 ** (power + 1), 60)):
        q, bases, starts = np.empty(32, np.int8), np.empty(1, np.float32), np.empty(1, np.int32)
        _native.Kernels(isa).quantize_q8_for_u4(np.full(32, -value, np.float32), q, bases, starts, 32)
        if power == 104 and value > edge:
            assert np.isnan(bases[0]) and not q.any()
        else:
            assert bases[0] == 1.5 * 2.0**23 * scale and (q == -code).all()


@pytest.mark.parametrize(("value", "scale"), [(0.0, 0.0), (1e-42, 0.0), (np.nan, np.nan), (np.inf, np.nan), (-np.inf, np.nan)])
def test_activations_that_have_no_scale(isa, value, scale):
    """Zeros and denormals are nothing; what is not finite must be seen in the result."""
    for where in (0, 20, 63):
        x = np.zeros(64, np.float32) if not np.isfinite(value) else np.full(64, value, np.float32)
        x[where] = value
        q, scales, sums = np.full(64, 9, np.int8), np.empty(1, np.float32), np.empty(1, np.int32)
        _native.Kernels(isa).quantize_q8(x, q, scales, sums, 64)
        assert np.array_equal(scales, [scale], equal_nan=True) and not q.any() and sums[0] == 0
        q[:] = 9
        _native.Kernels(isa).quantize_q8_for_u4(x, q, scales, sums, 64)
        assert np.array_equal(scales, [scale], equal_nan=True) and not q.any() and sums[0] == scales.view(np.int32)[0]


@pytest.mark.parametrize("rows", [3, 60])
@pytest.mark.parametrize(("value", "seen"), [(2.4e33, True), (2.5e33, False), (-3e38, False)])
def test_activations_whose_base_would_be_infinite(isa, value, seen, rows):
    x, out = np.ones((rows, 64), np.float32), np.empty((rows, 32), np.float32)
    x[1, 5] = value
    _native.PackedLinear(np.full((32, 64), 1e-5, np.float32), "int4", isa, 32)(x, out)
    assert np.isfinite(np.delete(out, 1, 0)).all()
    if seen:
        np.testing.assert_allclose(out[1], 1e-5 * value, rtol=0.01)  # half a step of 120
    else:
        assert np.isnan(out[1]).all()


def test_one_outlier_takes_the_group(isa):
    x = np.full(128, 1e-3, np.float32)
    x[77] = -1e30
    q, scales, sums = np.empty(128, np.int8), np.empty(2, np.float32), np.empty(2, np.int32)
    _native.Kernels(isa).quantize_q8(x, q, scales, sums, 64)
    assert q[77] == -127 and sums[1] == -127 and (q[:64] == 127).all()
    _native.Kernels(isa).quantize_q8_for_u4(x, q, scales, sums, 64)
    assert -120 <= q[77] < -59 and sums[1] == scales.view(np.int32)[1] - 8 * int(q[77])
    assert (q[:64] == 66).all()  # 1e-3 is 65.5 / 2^16


@pytest.mark.parametrize("count", [1, 5, 32, 64, 128])
def test_4_bit_scales_are_better_than_the_plain_one(count):
    """Over many groups: never worse than largest / -8, and clearly better in the mean; within 2 % of an exhaustive search."""
    rng, ours, plain, best = np.random.default_rng(count), [], [], []
    for _ in range(60):
        w = rng.normal(size=count).astype(np.float32)
        codes = np.empty(count, np.uint8)
        scale = _native.quantize_group(w, "int4", codes)
        assert codes.max(initial=0) <= 15
        extreme = w[np.abs(w).argmax()]

        def error(s, w=w):
            return ((w - s * np.clip(np.rint(w / s), -8, 7)) ** 2).sum()

        ours.append(((w - scale * (codes.astype(int) - 8)) ** 2).sum())
        plain.append(error(extreme / -8))
        best.append(min(error(extreme / -d) for d in np.linspace(4, 10, 400)))
        # A float16 is within 2^-11 of the fitted scale, which costs 2^-22 of the squares of the weights at most.
        assert ours[-1] <= plain[-1] * (1 + 1e-5) + 2.0**-22 * (w.astype(float) ** 2).sum()
    if count >= 32:
        assert np.mean(ours) < 0.93 * np.mean(plain) and np.mean(ours) < 1.02 * np.mean(best)


def groups_of_all_kinds(count):
    """Groups of weights: of all sizes, with one that outweighs the rest, few values, equal magnitudes, and mostly zeros."""
    rng = np.random.default_rng(count)
    for size in (1, 3e-2, 2e-3, 4e-4, 2e-4, 5e-5, 1e-6, 2.0**-22, 3e4):
        yield size * rng.normal(size=count)
        yield size * np.clip(rng.standard_cauchy(count), -8, 8)
        yield size * rng.integers(-2, 3, count) / 2
        yield size * rng.choice([-1, 1], count)
        yield size * rng.normal(size=count) * (rng.random(count) < 0.1)


def search(w, bits):
    """Scale and codes of a group by trying everything: every candidate, float32 where the kernels have it, and no bound."""
    w, zero = np.pad(w, (0, -len(w) % 8)), ZERO[bits]
    lowest, highest = (np.float32(n) for n in ((-8, 7) if bits == 4 else (-127, 127)))
    extreme, best = w[np.abs(w).argmax()], (0.0, 0.0, np.float32(0))  # explained, scale, inverse
    if abs(extreme) < 2.0**-25:
        return 0.0, np.full(len(w), zero)

    def sums(inverse):
        q = np.clip(np.rint(w * inverse), lowest, highest)
        lanes = np.zeros((2, 8), np.float32)
        for eight in range(0, len(w), 8):
            lanes += np.stack([w[eight:eight + 8] * q[eight:eight + 8], q[eight:eight + 8] ** 2])
        total = [0.0, 0.0]
        for lane in lanes.T.astype(float):
            total += lane
        return total

    for target in np.arange(16, dtype=np.float32) / 4 - 9 if bits == 4 else [highest]:
        inverse = target / extreme
        wq, qq = sums(inverse)
        fitted = np.float32(wq / qq)
        candidates = [(float(np.float16(fitted)), inverse, wq, qq)]
        if abs(fitted) < 2.0**-14:  # where float16 has few digits: both neighbours, with integers of their own
            below = np.floor(abs(fitted) * 2.0**24) * 2.0**-24
            sizes = [np.float32(np.copysign(size, fitted)) for size in (below, below + 2.0**-24) if size]
            candidates = [(float(size), 1 / size, *sums(1 / size)) for size in sizes]
        for scale, inverse, wq, qq in candidates:
            best = max(best, (scale * (2 * wq - scale * qq), scale, inverse), key=lambda each: each[0])  # of equal ones the first
    return best[1], np.clip(np.rint(w * best[2]), lowest, highest) + zero


@pytest.mark.parametrize("count", [1, 7, 8, 31, 32, 64, 100, 128])
def test_scales_and_integers_are_those_of_a_search(isa, count):
    codes = np.empty(count, np.uint8)
    for w in (group.astype(np.float32) for group in groups_of_all_kinds(count)):
        for dtype, bits in BITS.items():
            scale, wanted = search(w, bits)
            assert _native.quantize_group(w, dtype, codes, isa) == scale and np.array_equal(codes, wanted[:count]), (dtype, w)


@pytest.mark.parametrize("count", [8, 32, 64, 104, 128])
def test_sums_that_scales_are_compared_by(isa, count):
    """Eight lanes of float32, each product and each sum rounded: the same bits in every build."""
    kernels, rng = _native.Kernels(isa), np.random.default_rng(count)
    w, inverses = rng.normal(size=count).astype(np.float32), rng.normal(size=16, scale=4).astype(np.float32)
    w[3] = 0.5 / inverses[2]  # a tie, nearly
    w_q, q_q = np.full((2, 8, 16), np.nan, np.float32)
    kernels.scale_sums(w, inverses, -8, 7, w_q, q_q)
    q = np.clip(np.rint(w[:, None] * inverses), -8, 7)
    assert q.min() == -8 and q.max() == 7
    wanted_w, wanted_q = np.zeros((2, 8, 16), np.float32)
    for eight in (slice(begin, begin + 8) for begin in range(0, count, 8)):
        wanted_w += w[eight, None] * q[eight]
        wanted_q += q[eight] ** 2
    assert np.array_equal(w_q, wanted_w) and np.array_equal(q_q, wanted_q)


@pytest.mark.parametrize("count", [7, 32, 64, 128])
def test_none_of_the_16_scales_is_better(isa, count):
    """Each is the float16 nearest to the best for the integers that a place of the extreme weight from -9 to -5.25 gives; float64."""
    codes = np.empty(count, np.uint8)
    for w in (group.astype(np.float32).astype(float) for group in groups_of_all_kinds(count) if np.abs(group).max() > 1e-2):
        scale = _native.quantize_group(w.astype(np.float32), "int4", codes, isa)
        extreme, best = w[np.abs(w).argmax()], np.inf
        for target in np.arange(16) / 4 - 9:
            q = np.clip(np.rint(w * (target / extreme)), -8, 7)
            candidate = float(np.float16(w @ q / (q @ q)))
            best = min(best, ((w - candidate * q) ** 2).sum())
        # Sums of float32, in lanes of at most 16 weights: 2^-24 a product and an addition, of the squares of the weights.
        assert ((w - scale * (codes.astype(float) - 8)) ** 2).sum() <= best + 18 * 2.0**-24 * 2 * (w**2).sum()


def test_8_bit_weights_are_within_half_a_step():
    """Of the plain scale, and a little for the fit of the scale to its integers."""
    w = np.random.default_rng(0).normal(size=128).astype(np.float32)
    codes = np.empty(128, np.uint8)
    scale = _native.quantize_group(w, "int8", codes)
    assert codes.min() >= 1
    assert np.abs(w - scale * (codes.astype(int) - 128)).max() < 0.6 * np.abs(w).max() / 127


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("size", [0.02, 1000])
def test_a_scale_is_the_float16_nearest_to_the_best_for_its_integers(dtype, size):
    rng, codes = np.random.default_rng(1), np.empty(64, np.uint8)
    for _ in range(50):
        w = (size * rng.normal(size=64)).astype(np.float32)
        scale = _native.quantize_group(w, dtype, codes)
        integers = codes.astype(float) - ZERO[BITS[dtype]]
        fitted = (w.astype(float) @ integers) / (integers @ integers)
        assert scale == np.float16(scale) and abs(scale - fitted) <= np.spacing(np.float16(abs(scale))) * 0.51


def error_over_the_best(dtype, size):
    """The mean squared error of groups whose plain scale is about `size`, over that of the best of 800 scales that float16 has there if its
    numbers are multiples of 2^-24."""
    rng, codes, step = np.random.default_rng(1), np.empty(64, np.uint8), 2.0**-24
    low, high = (8, 7) if dtype == "int4" else (127, 127)
    ours, best = [], []
    for _ in range(30):
        w = rng.normal(size=64)
        w = (w / np.abs(w).max() * low * size * rng.uniform(0.5, 1)).astype(np.float32).astype(float)
        scale = _native.quantize_group(w.astype(np.float32), dtype, codes)
        assert scale == np.float16(scale)
        ours.append(((w - scale * (codes.astype(float) - ZERO[BITS[dtype]])) ** 2).sum())
        plain = np.abs(w).max() / low / step
        sizes = step * np.unique(np.geomspace(max(plain / 2, 1), max(2 * plain, 2), 400).astype(int))
        best.append(min(((w - s * np.clip(np.rint(w / s), -low, high)) ** 2).sum() for size in sizes for s in (size, -size)))
    return np.mean(ours) / np.mean(best)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("exponent", [-15, -17, -20, -22, -23, -24, -25])
def test_weights_whose_scale_has_few_digits(dtype, exponent):
    """Below 2^-14 a float16 is a multiple of 2^-24. A scale is as near to the best of those as where it has all digits."""
    assert error_over_the_best(dtype, 2.0**exponent) <= 1.01 * error_over_the_best(dtype, 2.0**-8)


@pytest.mark.parametrize(("dtype", "most"), [("int8", 127), ("int4", 7)])
def test_the_smallest_multiples_are_held(dtype, most):
    """Of 2^-24, as far as there are integers; nothing is left of less than half of it."""
    codes = np.empty(32, np.uint8)
    for largest in range(1, most + 1):
        w = np.random.default_rng(largest).integers(-largest, largest + 1, 32).astype(np.float32)
        w[5] = largest
        scale = _native.quantize_group(w * np.float32(2.0**-24), dtype, codes)
        assert np.array_equal(scale * (codes.astype(float) - ZERO[BITS[dtype]]), w * 2.0**-24)
    assert _native.quantize_group(np.full(32, 2.0**-25 * 0.99, np.float32), dtype, codes) == 0 and (codes == ZERO[BITS[dtype]]).all()


@pytest.mark.parametrize(("dtype", "most"), [("int4", 8 * 65504), ("int8", 127 * 65504)])
def test_weights_whose_scale_would_be_beyond_float16(dtype, most):
    codes = np.empty(32, np.uint8)
    for sign in (-1, 1):
        w = np.full(32, sign * most, np.float32)
        assert 65504 * 0.99 <= abs(_native.quantize_group(w, dtype, codes)) <= 65504
        w[5] = np.nextafter(w[5], np.float32(sign * np.inf))
        message = rf"expected at most {most} in magnitude for {dtype}, found -?{most}\.?\d*; bfloat16 and float32 reach further"
        with pytest.raises(OverflowError, match=message):
            _native.quantize_group(w, dtype, codes)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(("value", "scale"), [(0.0, 0.0), (1e-42, 0.0), (np.nan, np.nan), (np.inf, np.nan)])
def test_weights_that_have_no_scale(dtype, value, scale):
    codes = np.empty(32, np.uint8)
    assert np.array_equal(_native.quantize_group(np.full(32, value, np.float32), dtype, codes), scale, equal_nan=True)
    assert (codes == ZERO[BITS[dtype]]).all()


@pytest.mark.parametrize(("dtype", "group"), FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 31), (32, 32), (40, 257), (77, 300), (96, 1100)])
def test_layers(isa, dtype, group, shape):
    """Odd sizes, tails of groups and panels, several blocks: against float64 with the weights and activations as quantised."""
    rng = np.random.default_rng(shape[0])
    weight, x = rng.normal(size=shape).astype(np.float32), rng.normal(size=(19, shape[1])).astype(np.float32)
    layer = _native.PackedLinear(weight, dtype, isa, group)
    held, seen, size = np.zeros(shape), np.zeros(x.shape), 0
    for begin in range(0, shape[1], group):
        part = slice(begin, min(begin + group, shape[1]))
        for n in range(shape[0]):
            codes = np.empty(part.stop - part.start, np.uint8)
            scale = _native.quantize_group(np.ascontiguousarray(weight[n, part]), dtype, codes)
            held[n, part] = np.float64(scale) * (codes.astype(int) - ZERO[BITS[dtype]])
        scale = scale_of(dtype, x[:, part])
        inverse = np.float32(127) / np.abs(x[:, part]).max(1) if dtype == "int8" else 1 / scale
        seen[:, part] = scale[:, None].astype(float) * np.rint(x[:, part] * inverse[:, None])
    wanted, size = seen @ held.T, np.abs(seen) @ np.abs(held).T
    groups = -(-shape[1] // group)
    for threads in (1, 2):
        out = np.full((19, shape[0]), np.nan, np.float32)
        layer(x, out, threads)
        error = np.abs(out - wanted) / (size * (2 * groups + 4) * EPSILON + 1e-30)
        assert error.max() < 1, np.unravel_index(error.argmax(), error.shape)
        again = out.copy()
        layer(x, again, threads, True)
        np.testing.assert_allclose(again, 2 * wanted, atol=float((size * (4 * groups + 8) * EPSILON).max()))


@pytest.mark.parametrize(("dtype", "group"), FORMATS)
@pytest.mark.parametrize(("rows", "depth"), [(23, 640), (23, 1300), (209, 640)])  # one part and block, two blocks, two parts
def test_layer_rows_alone_and_together(isa, dtype, group, rows, depth):
    rng = np.random.default_rng(3)
    layer = _native.PackedLinear(rng.normal(size=(77, depth)).astype(np.float32), dtype, isa, group)  # the last panel is narrow
    x = rng.normal(size=(rows, depth)).astype(np.float32)
    together = np.empty((rows, 77), np.float32)
    layer(x, together, 3)
    twice = together.copy()
    layer(x, twice, 2, True)
    for r in range(0, rows, 1 + rows // 23):
        alone = np.empty((1, 77), np.float32)
        layer(x[r:r + 1], alone)
        assert np.array_equal(alone[0], together[r])
        layer(x[r:r + 1], alone, 1, True)
        assert np.array_equal(alone[0], twice[r])


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("experts", [False, True])
def test_models_whose_rows_go_in_parts(isa, dtype, experts):
    """Gated products and products of experts too: the bits of one part and thread."""
    config = moe.config(num_experts=2, num_experts_per_tok=1) if experts else folders.config()
    model = LLaDAForCausalLM.random(config, dtype, group_size=32, isa=isa, num_threads=1)
    three = LLaDAForCausalLM.random(config, dtype, group_size=32, isa=isa, num_threads=3)
    ids = np.random.default_rng(0).integers(0, 55, 209)
    wanted = model.forward(ids)
    assert np.array_equal(three.forward(ids), wanted)
    batch = three.forward_logits_batch(np.stack([ids, ids[::-1]]))
    assert np.array_equal(batch[0], wanted) and np.array_equal(batch[1], model.forward(ids[::-1].copy()))
    few = ids[:23]  # in one part alone, and in several as one of nine
    assert np.array_equal(three.forward_logits_batch(np.stack([few] * 9))[8], model.forward(few))


def test_rows_that_lie_apart(isa):
    """The bits of rows side by side; strides that are no rows of floats are refused."""
    rng = np.random.default_rng(5)
    x, wide = rng.normal(size=(5, 64)).astype(np.float32), np.full((5, 100), 7, np.float32)
    for dtype in ("float32", "int4"):
        layer = _native.PackedLinear(rng.normal(size=(40, 64)).astype(np.float32), dtype, isa)
        wanted, wide_x = np.empty((5, 40), np.float32), np.repeat(x, 2, 0)[::2]
        layer(x, wanted)
        layer(wide_x, wide[:, :40])
        assert np.array_equal(wide[:, :40], wanted) and (wide[:, 40:] == 7).all()
    for bad in (np.empty((64, 5), np.float32).T, np.empty((5, 128), np.float32)[:, ::2], np.empty((5, 64), np.float32)[::-1]):
        with pytest.raises(ValueError, match="x: expected rows of numbers side by side, found strides"):
            layer(bad, wanted)
    with pytest.raises(ValueError, match="out: expected rows of numbers side by side, found strides"):
        layer(x, np.empty((40, 5), np.float32).T)
    one = np.empty((40, 1), np.float32).T  # its stride of rows is that of a number
    layer(np.asfortranarray(x[:1]), one)
    assert np.array_equal(one[0], wanted[0])


@pytest.mark.parametrize("rows", [5, 60])
def test_damaged_weights_and_activations_are_seen(isa, rows):
    rng = np.random.default_rng(4)
    for dtype in ("int8", "int4"):
        weight, x = rng.normal(size=(40, 64)).astype(np.float32), rng.normal(size=(rows, 64)).astype(np.float32)
        weight[7, 40], x[2, 3] = np.nan, np.inf
        out = np.empty((rows, 40), np.float32)
        _native.PackedLinear(weight, dtype, isa, 32)(x, out)
        assert np.isnan(out[:, 7]).all() and np.isnan(out[2]).all()
        assert np.isfinite(np.delete(np.delete(out, 2, 0), 7, 1)).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "group", "error"), [("int8", 128, 0.05), ("int8", 32, 0.04), ("int4", 32, 0.3), ("int4", 128, 0.4)])
def test_models(isa, tmp_path, tied, dtype, group, error):
    """Logits near those of float32: random weights have no structure to lose, so this is the noise of rounding alone."""
    config = folders.config(n_kv_heads=2, weight_tying=tied)
    folders.write(tmp_path, config, folders.tensors(config))
    exact, model = LLaDAForCausalLM(tmp_path), LLaDAForCausalLM(tmp_path, dtype=dtype, group_size=group, isa=isa)
    ids = np.random.default_rng(0).integers(0, 55, 40)
    wanted, found = exact.forward(ids), model.forward(ids)
    assert 1e-4 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < error
    threads = LLaDAForCausalLM(tmp_path, dtype=dtype, group_size=group, isa=isa, num_threads=3)
    assert np.array_equal(model.forward(ids[:17]), threads.forward(ids[:17]))
    batch = model.generate([ids, ids[:9], ids[5:30]], gen_length=8, block_length=4)
    assert np.array_equal(batch.sequences[1], model.generate(ids[:9], gen_length=8, block_length=4).sequences[0])


def test_builds_agree_on_the_weights(tmp_path):
    """Integers and their sums are the same everywhere; only float32 roundings differ."""
    config = folders.config()
    folders.write(tmp_path, config, folders.tensors(config))
    ids = np.arange(20)
    logits = [LLaDAForCausalLM(tmp_path, dtype="int4", isa=name).forward(ids) for name, ok in _native.isas().items() if ok]
    for other in logits[1:]:
        assert np.abs(other - logits[0]).max() < 0.02 * np.abs(logits[0]).max()  # a rounding that tips an activation is a whole step


def test_memory(tmp_path):
    config = folders.config(d_model=256, n_heads=4, mlp_hidden_size=1024)
    halves = [LLaDAForCausalLM.random(config, dtype).memory()["weights"] for dtype in ("bfloat16", "float16")]
    assert halves[0] == halves[1]
    for dtype, group, bits in (("int8", 128, 8.125), ("int4", 128, 4.125), ("int4", 32, 4.5)):
        model = LLaDAForCausalLM.random(config, dtype, group_size=group)
        table = 64 * 256
        matrices = model.config.matrices() - 2 * table
        stated = matrices * bits / 8 + table * (2 + 1 + 2 / group)
        assert abs(model.memory()["weights"] / stated - 1) < 0.01


@pytest.mark.parametrize(("group_size", "error"), [(0, ValueError), (48, ValueError), (256, ValueError), ("32", TypeError)])
def test_group_sizes_that_are_none(group_size, error):
    with pytest.raises(error, match="group_size: expected one of 32, 64, 128"):
        LLaDAForCausalLM.random(folders.config(), "int4", group_size=group_size)
