"""The kernels of every build by themselves, on one core. Where a call is short, many rows are laid end to end: the way through Python
costs about a microsecond."""

import numpy as np

from llada_native import _native

from .common import ISAS, LLADA_8B, ShortCall, peak_gflops, require_isa, seconds_of

GROUPS = (32, 64, 128)
ROWS = 32
HEAD_DIM = LLADA_8B.head_dim


def rate(operations, call):
    """10^9 operations a second."""
    return 1e-9 * operations / seconds_of(call)


def fraction_of_peak(isa, operations, call):
    """Of the float32 peak, measured before and after, so that a change of the clock shows in both."""
    before = peak_gflops(isa)
    found = rate(operations, call)
    return found / max(before, peak_gflops(isa))


class _Product(ShortCall):
    """What the benchmarks of matrix products share: `call`, its `operations`, and `result()`, found and exact. asv passes over the name."""

    def time_call(self, *_):
        self.call()

    time_call.version = "1"

    def track_gflops(self, *_):
        return rate(self.operations, self.call)

    track_gflops.version = "1"
    track_gflops.unit = "GFLOP/s"

    def track_fraction_of_peak(self, isa, *_):
        return fraction_of_peak(isa, self.operations, self.call)

    track_fraction_of_peak.version = "1"
    track_fraction_of_peak.unit = "fraction"

    def track_error(self, *_):
        """Largest error against float64, over the largest output."""
        self.call()
        found, exact = self.result()
        return np.abs(found - exact).max() / np.abs(exact).max()

    track_error.version = "1"
    track_error.unit = "of the largest output"


class Gemm(_Product):
    """One panel of output channels and one block of depth, in the first-level cache: what a linear layer cannot exceed."""

    params = (ISAS, ("float32", *(f"{dtype}-{group}" for dtype in ("int8", "int4", "int4_packed", "int4_winograd") for group in GROUPS)))
    param_names = ("isa", "format")
    rows = 480  # a multiple of every build's tile

    def setup(self, isa, weight_format):
        require_isa(isa)
        kernels, rng = _native.Kernels(isa), np.random.default_rng(0)
        c = np.ones((self.rows, kernels.panel), np.float32)
        if weight_format == "float32":
            depth = 256
            a, w = rng.standard_normal((self.rows, depth), np.float32), rng.standard_normal((depth, kernels.panel), np.float32)
            self.call = lambda: kernels.gemm_f32(a, w, c)
            self.result = lambda: (c, a.astype(np.float64) @ w)
        else:
            dtype, group = weight_format.split("-")
            dtype, _, kind = dtype.partition("_")
            winograd = kind == "winograd"
            if winograd and not kernels.has_gemm_winograd:
                raise NotImplementedError(f"{isa} has no Winograd products here")
            depth, bits = 512, int(dtype.removeprefix("int"))
            groups, largest = depth // int(group), 120 if bits == 4 else 127
            x = rng.integers(-largest, largest + 1, (self.rows, depth), np.int8)
            w = rng.integers(1, 1 << bits, (depth // 4, kernels.panel, 4), np.uint8)
            sums = np.ascontiguousarray(x.reshape(self.rows, groups, -1).sum(2, dtype=np.int32).T)
            x_scales, w_scales = np.ones((groups, self.rows), np.float32), np.ones((groups, kernels.panel), np.float32)
            if bits == 4:  # what a tile takes beside 4-bit weights: see QuantizedTile in src_cpp/kernels/table.h
                x_scales *= 1.5 * 2**23
                first, second = np.moveaxis(x.astype(np.int32).reshape(self.rows, groups, -1, 2, 4), 3, 0)
                less = (first * (second + 128)).sum((2, 3), dtype=np.int32).T if winograd else 8 * sums
                sums = x_scales.view(np.int32) - less
            stored = w[0::2] | w[1::2] << 4 if kind else w
            self.call = lambda: kernels.gemm_quantized(bits, x, x_scales, sums, stored, w_scales, c, winograd=winograd)
            self.result = lambda: (c, x.astype(np.float64) @ (w.swapaxes(1, 2).reshape(depth, -1) - 2.0 ** (bits - 1)))
        self.operations = 2 * self.rows * depth * kernels.panel


class Attention(_Product):
    """One head of LLaDA-8B: all rows, in the tiles of the build, over all keys."""

    params = (ISAS, (1, 32, 160), (160, 512, 2048))
    param_names = ("isa", "rows", "keys")

    def setup(self, isa, rows, keys):
        require_isa(isa)
        self.kernels, rng = _native.Kernels(isa), np.random.default_rng(0)
        self.q, self.k, self.v = (rng.standard_normal((n, HEAD_DIM), np.float32) for n in (rows, keys, keys))
        panel, tile = self.kernels.panel, self.kernels.attention_rows
        self.panels = np.ascontiguousarray(self.k.reshape(-1, panel, HEAD_DIM).swapaxes(1, 2))  # every number of keys is whole panels
        self.out = np.empty_like(self.q)
        self.tiles = [(self.q[i:i + tile], self.out[i:i + tile]) for i in range(0, rows, tile)]
        self.operations = 4 * rows * keys * HEAD_DIM

    def call(self):
        for q, out in self.tiles:
            self.kernels.attention_f32(q, self.panels, self.v, out, HEAD_DIM**-0.5)

    def result(self):
        scores = self.q.astype(np.float64) @ self.k.T * HEAD_DIM**-0.5
        weights = np.exp(scores - scores.max(1, keepdims=True))
        return self.out, weights / weights.sum(1, keepdims=True) @ self.v.astype(np.float64)


class Elementwise(ShortCall):
    """Kernels that go through their input once, over 32 rows of LLaDA-8B as a single one: of its width, or of its MLP's for silu_mul."""

    params = (ISAS, ("rms_norm", "rope", "silu_mul", "widen_bf16", "widen_f16", "narrow_f16",
                     *(f"{kernel}-{group}" for kernel in ("quantize_q8", "quantize_q8_for_u4") for group in GROUPS)))
    param_names = ("isa", "kernel")

    def setup(self, isa, kernel):
        require_isa(isa)
        kernels, rng = _native.Kernels(isa), np.random.default_rng(0)
        n = ROWS * (LLADA_8B.mlp_hidden_size if kernel == "silu_mul" else LLADA_8B.d_model)
        x, y = (rng.standard_normal(n, np.float32) for _ in range(2))
        self.elements, self.out = n, np.ones(n, np.float32)
        wide, other = x.astype(np.float64), y.astype(np.float64)
        if kernel == "rms_norm":
            self.call = lambda: kernels.rms_norm_f32(x, y, self.out, LLADA_8B.rms_norm_eps)
            self.exact = wide / np.sqrt(np.mean(wide**2) + LLADA_8B.rms_norm_eps) * other
        elif kernel == "rope":
            # One rotation again and again, in place: only the first result has an exact counterpart.
            angles = other[:n // 2]
            cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
            self.out = x
            self.call = lambda: kernels.rope_f32(x, cos, sin)
            low, high = wide[:n // 2], wide[n // 2:]
            self.exact = np.concatenate([low * cos - high * sin, high * cos + low * sin])
        elif kernel == "silu_mul":
            # In place, where numbers would shrink from call to call until they are denormal and slow: these are their own results,
            # and stay so, because below 0 and above -1 the rounding of one call is less after the next.
            self.out = x = -rng.random(n, np.float32)
            up = 1 + np.exp(-x)
            self.call = lambda: kernels.silu_mul_f32(x, up)
            wide = x.astype(np.float64)
            self.exact = wide / (1 + np.exp(-wide)) * up
        elif kernel == "widen_bf16":
            bits = (x.view(np.uint32) >> 16).astype(np.uint16)
            self.call = lambda: kernels.widen_bf16(bits, self.out)
            self.exact = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        elif kernel == "widen_f16":
            halves = x.astype(np.float16)
            self.call = lambda: kernels.widen_f16(halves.view(np.uint16), self.out)
            self.exact = halves.astype(np.float64)
        elif kernel == "narrow_f16":
            halves = np.ones(n, np.float16)
            self.out, self.exact = halves, wide
            self.call = lambda: kernels.narrow_f16(x, halves.view(np.uint16))
        else:
            name, _, group = kernel.partition("-")
            quantize, group = getattr(kernels, name), int(group)
            self.codes = np.ones(n, np.int8)
            self.scales, sums = np.ones(n // group, np.float32), np.ones(n // group, np.int32)
            self.call = lambda: quantize(x, self.codes, self.scales, sums, group)
            self.exact = wide

    def time_elementwise(self, *_):
        self.call()

    time_elementwise.version = "1"

    def track_gelements(self, *_):
        return rate(self.elements, self.call)

    track_gelements.version = "1"
    track_gelements.unit = "10^9 elements/s"

    def track_error(self, isa, kernel):
        """Largest error of one call against float64, over the largest output."""
        self.call()
        found = self.out
        if kernel.startswith("quantize"):
            scales = self.scales.astype(np.float64) / (1.5 * 2**23 if kernel.startswith("quantize_q8_for_u4") else 1)
            found = (self.codes.reshape(len(scales), -1) * scales[:, None]).reshape(-1)
        return np.abs(found - self.exact).max() / np.abs(self.exact).max()

    track_error.version = "1"
    track_error.unit = "of the largest output"
