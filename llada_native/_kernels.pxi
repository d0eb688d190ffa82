# The part of _native that is about the kernel table: the table itself for _sampler, the peak of a core, and for tests each kernel.
# Included by _native.pyx.
from cpython.pycapsule cimport PyCapsule_New


def kernel_table():
    """A capsule of the active build's kernels, for _sampler; of the scalar ones where LLADA_ISA names a build that cannot run."""
    cdef string name
    try:
        name = cpp.active_isa()
    except ValueError:
        name = b"scalar"
    return PyCapsule_New(<void*> &cpp.kernels_for(name), "llada.KernelTable", NULL)


def peak_gflops(str isa):
    """
    The peak of one core in float32 multiply-adds with the vectors of a build, in GFLOP/s: the best of 20 runs of a loop that touches
    registers only, at the clock of this moment.
    """
    cdef const cpp.KernelTable* kernels = &cpp.kernels_for(isa.encode())
    cdef float[32] sink
    cdef int64_t rounds = 100_000
    cdef int64_t operations = 0
    sink[:] = [0] * 32
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        operations = kernels.multiply_add(rounds, sink)
        best = min(best, time.perf_counter() - start)
    return 1e-9 * operations / best


cdef class Kernels:
    """The kernels of one build, for tests: each method is one entry of the table, arrays in and out."""
    cdef const cpp.KernelTable* table
    cdef cpp.TileSetup before

    def __cinit__(self, str isa):
        self.table = &cpp.kernels_for(isa.encode())

    @property
    def panel(self):
        return self.table.panel

    @property
    def attention_rows(self):
        return self.table.attention_rows

    def gemm_f32(self, const float[:, ::1] a, const float[:, ::1] w, float[:, ::1] c, bint accumulate=False):
        """c[rows, panel] = a[rows, depth] . w[depth, panel]"""
        cdef cpp.FloatTile tile
        tile.a, tile.a_stride, tile.w, tile.w_stride = &a[0, 0], a.shape[1], &w[0, 0], w.shape[1]
        tile.c, tile.c_stride, tile.rows, tile.depth, tile.accumulate = &c[0, 0], c.shape[1], a.shape[0], a.shape[1], accumulate
        self.table.gemm_f32(tile)

    @property
    def has_tiles(self):
        """Whether products run on tile registers, which each method here sets up for itself."""
        return self.table.enter_tiles != NULL

    cdef void enter(self, int rows, int depth_bytes) noexcept:
        if self.table.enter_tiles != NULL:
            self.table.enter_tiles(rows, depth_bytes, &self.before)

    cdef void leave(self) noexcept:
        if self.table.leave_tiles != NULL:
            self.table.leave_tiles(self.before)

    @property
    def has_gemm_bf16(self):
        return self.table.gemm_bf16 != NULL

    @property
    def has_gemm_split_bf16(self):
        return self.table.gemm_split_bf16 != NULL

    @property
    def paired_depth(self):
        """What the depth of a product of pairs is a multiple of."""
        return self.table.paired_depth

    def gemm_bf16(self, const uint16_t[:, ::1] a, const uint16_t[:, :, ::1] w, float[:, ::1] c, bint accumulate=False, int parts=1):
        """c[rows, panel] = a[rows, parts depth] . w[depth / 2, panel, 2], in pairs; of several parts the rows are the sums of those."""
        cdef cpp.Bf16Tile tile
        cdef int depth = a.shape[1] // parts
        if self.table.gemm_bf16 == NULL or (parts > 1 and self.table.gemm_split_bf16 == NULL):
            raise ValueError("gemm_bf16: not in this build")
        if ((2 * w.shape[0], w.shape[1], w.shape[2]) != (depth, self.table.panel, 2) or depth * parts != a.shape[1]
                or parts not in (1, 3) or depth % self.table.paired_depth or (c.shape[0], c.shape[1]) != (a.shape[0], self.table.panel)):
            raise ValueError("gemm_bf16: shapes that do not fit each other")
        tile.a, tile.a_stride, tile.w, tile.w_stride = &a[0, 0], a.shape[1], &w[0, 0, 0], 2 * w.shape[1]
        tile.c, tile.c_stride, tile.rows, tile.depth, tile.accumulate = &c[0, 0], c.shape[1], a.shape[0], depth, accumulate
        self.enter(a.shape[0], 64)
        if parts > 1:
            self.table.gemm_split_bf16(tile, depth)
        else:
            self.table.gemm_bf16(tile)
        self.leave()

    @property
    def packed_rows(self):
        """Most rows that packed 4-bit weights are multiplied with as they are, by group."""
        return {32: self.table.packed_rows[0], 64: self.table.packed_rows[1], 128: self.table.packed_rows[2]}

    @property
    def has_gemm_winograd(self):
        return self.table.gemm_winograd_u4 != NULL

    def gemm_quantized(self, int bits, const int8_t[:, ::1] x, const float[:, ::1] x_scales, const int32_t[:, ::1] x_sums,
                       const uint8_t[:, :, ::1] w, const float[:, ::1] w_scales, float[:, ::1] c, bint accumulate=False,
                       bint winograd=False):
        """x [rows, depth], x_scales and x_sums [groups, rows] (of 4 bits: bases and starts), w [depth / 4, panel, 4] or, of 4 bits and
        packed, [depth / 8, panel, 4], w_scales [groups, panel], c [rows, panel]; winograd: x_sums are its starts, w is packed. Beside
        4-bit weights x must be in [-120, 120], and of packed ones float16 must hold the scales."""
        cdef int groups = x_scales.shape[0], panel = self.table.panel
        cdef bint packed = bits == 4 and w.shape[0] == x.shape[1] // 8
        if (x_scales.shape[1] != x.shape[0] or (x_sums.shape[0], x_sums.shape[1]) != (groups, x.shape[0])
                or groups * (x.shape[1] // groups) != x.shape[1] or x.shape[1] // groups not in (32, 64, 128)
                or (w.shape[0], w.shape[1], w.shape[2]) != (x.shape[1] // (8 if packed else 4), panel, 4) or (winograd and not packed)
                or (w_scales.shape[0], w_scales.shape[1]) != (groups, panel) or (c.shape[0], c.shape[1]) != (x.shape[0], panel)):
            raise ValueError("gemm_quantized: shapes that do not fit each other")
        if winograd and self.table.gemm_winograd_u4 == NULL:
            raise ValueError("gemm_quantized: no Winograd products in this build")
        cdef cpp.QuantizedTile tile
        cdef uint8_t[:, ::1] unpacked
        cdef int32_t[:, ::1] w_starts
        cdef const uint16_t[:, ::1] stored
        if packed and not winograd:
            stored = np.asarray(w_scales).astype(np.float16).view(np.uint16)
            tile.w_stored_scales = &stored[0, 0]
        if winograd:
            unpacked, w_starts = np.empty((x.shape[1], panel), np.uint8), np.empty((groups, panel), np.int32)
            tile.unpacked, tile.w_starts = &unpacked[0, 0], &w_starts[0, 0]
        tile.x, tile.x_stride, tile.x_scales, tile.x_sums = &x[0, 0], x.shape[1], &x_scales[0, 0], &x_sums[0, 0]
        tile.x_group_stride, tile.w, tile.w_scales = x_scales.shape[1], &w[0, 0, 0], &w_scales[0, 0]
        tile.c, tile.c_stride, tile.rows, tile.accumulate = &c[0, 0], c.shape[1], x.shape[0], accumulate
        tile.groups, tile.group = x_scales.shape[0], x.shape[1] // x_scales.shape[0]
        self.enter(x.shape[0], min(tile.group, 64))
        (self.table.gemm_winograd_u4 if winograd else self.table.gemm_packed_u4 if packed else self.table.gemm_u4 if bits == 4
         else self.table.gemm_u8)(tile)
        self.leave()

    def extremes(self, const float[::1] x):
        """The largest of x, its lowest index, the second largest, whether there is a NaN."""
        cdef cpp.Extremes found
        self.table.extremes(&x[0], x.shape[0], &found)
        return found.most, found.index, found.second, bool(found.nan)

    def softmax_sums(self, const float[::1] x, double shift):
        """Sums of exp(x - shift) and of exp(x - shift) (x - shift)."""
        cdef double total, moment
        self.table.softmax_sums(&x[0], x.shape[0], shift, &total, &moment)
        return total, moment

    def unpack_u4(self, const uint8_t[::1] packed, uint8_t[::1] out):
        self.table.unpack_u4(&packed[0], &out[0], packed.shape[0])

    def quantize_q8(self, const float[::1] x, int8_t[::1] q, float[::1] scales, int32_t[::1] sums, int group):
        self.table.quantize_q8(&x[0], &q[0], &scales[0], &sums[0], 1, x.shape[0], group)

    def quantize_q8_for_u4(self, const float[::1] x, int8_t[::1] q, float[::1] bases, int32_t[::1] starts, int group,
                           int32_t[::1] winograd_starts=None):
        cdef int32_t* winograd = NULL
        if winograd_starts is not None:
            winograd = &winograd_starts[0]
        self.table.quantize_q8_for_u4(&x[0], &q[0], &bases[0], &starts[0], winograd, 1, x.shape[0], group)

    def scale_sums(self, const float[::1] w, const float[::1] inverses, float lowest, float highest, float[:, ::1] w_q, float[:, ::1] q_q):
        self.table.scale_sums(&w[0], w.shape[0], &inverses[0], lowest, highest, &w_q[0, 0], &q_q[0, 0])

    def widen_bf16(self, const uint16_t[::1] x, float[::1] out):
        self.table.widen_bf16(&x[0], &out[0], x.shape[0])

    def round_bf16(self, const float[::1] x, float[::1] out):
        self.table.round_bf16(&x[0], &out[0], x.shape[0])

    def round_pairs(self, const float[::1] x, uint16_t[::1] out):
        self.table.round_pairs(&x[0], &out[0], x.shape[0])

    def split_pairs(self, const float[::1] x, uint16_t[:, ::1] out):
        """out [3, n rounded up to a multiple of 16]"""
        if self.table.split_pairs == NULL:
            raise ValueError("split_pairs: not in this build")
        if out.shape[0] != 3 or out.shape[1] < -(-x.shape[0] // 16) * 16:
            raise ValueError("split_pairs: shapes that do not fit each other")
        self.table.split_pairs(&x[0], &out[0, 0], out.shape[1], x.shape[0])

    def narrow_f16(self, const float[::1] x, uint16_t[::1] out):
        self.table.narrow_f16(&x[0], &out[0], x.shape[0])

    def widen_f16(self, const uint16_t[::1] x, float[::1] out):
        self.table.widen_f16(&x[0], &out[0], x.shape[0])

    def rms_norm_f32(self, const float[::1] x, const float[::1] weight, float[::1] out, float eps):
        self.table.rms_norm_f32(&x[0], &weight[0], &out[0], x.shape[0], eps)

    def rope_f32(self, float[::1] x, const float[::1] cos, const float[::1] sin):
        self.table.rope_f32(&x[0], &cos[0], &sin[0], cos.shape[0])

    def silu_mul_f32(self, float[::1] gate, const float[::1] up):
        self.table.silu_mul_f32(&gate[0], &up[0], gate.shape[0])

    def attention_f32(self, const float[:, ::1] q, const float[:, :, ::1] k, const float[:, ::1] v, float[:, ::1] out, float scale,
                      const int32_t[::1] hidden=None):
        """q [rows, head_dim], k [panels, head_dim, panel], v [keys, width], out [rows, head_dim], hidden [rows]"""
        cdef cpp.AttentionTile tile
        if hidden is not None:
            tile.hidden = &hidden[0]
        tile.q, tile.q_stride, tile.k, tile.v = &q[0, 0], q.shape[1], &k[0, 0, 0], &v[0, 0]
        tile.out, tile.out_stride = &out[0, 0], out.shape[1]
        tile.rows, tile.keys, tile.head_dim, tile.scale = q.shape[0], v.shape[0], q.shape[1], scale
        self.table.attention_f32(tile)
