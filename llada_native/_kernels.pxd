# Mirror of the kernel table. _sampler calls kernels of a table that _native hands over, so it links nothing.
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t


cdef extern from "kernels/table.h" namespace "llada" nogil:
    cdef cppclass AttentionTile:
        const float* q
        ptrdiff_t q_stride
        const float* k
        const float* v
        float* out
        ptrdiff_t out_stride
        int rows, keys, head_dim
        float scale
        const int32_t* hidden

    cdef cppclass FloatTile:
        const float* a
        ptrdiff_t a_stride
        const float* w
        ptrdiff_t w_stride
        float* c
        ptrdiff_t c_stride
        int rows, depth, accumulate

    cdef cppclass Bf16Tile:
        const uint16_t* a
        ptrdiff_t a_stride
        const uint16_t* w
        ptrdiff_t w_stride
        float* c
        ptrdiff_t c_stride
        int rows, depth, accumulate

    cdef cppclass QuantizedTile:
        const int8_t* x
        ptrdiff_t x_stride
        const float* x_scales
        const int32_t* x_sums
        ptrdiff_t x_group_stride
        const uint8_t* w
        const float* w_scales
        const uint16_t* w_stored_scales
        float* c
        ptrdiff_t c_stride
        int rows, groups, group, accumulate
        uint8_t* unpacked
        int32_t* w_starts

    cdef cppclass Extremes:
        float most, second
        int32_t index, nan

    cdef struct TileSetup:
        pass

    cdef cppclass KernelTable:
        const char* name
        int panel
        int attention_rows
        void (*gemm_f32)(const FloatTile&) noexcept
        void (*gemm_bf16)(const Bf16Tile&) noexcept
        void (*gemm_split_bf16)(const Bf16Tile&, ptrdiff_t) noexcept
        int paired_depth
        void (*enter_tiles)(int, int, TileSetup*) noexcept
        void (*leave_tiles)(const TileSetup&) noexcept
        int64_t (*multiply_add)(int64_t, float*) noexcept
        int[3] packed_rows
        void (*gemm_u4)(const QuantizedTile&) noexcept
        void (*gemm_packed_u4)(const QuantizedTile&) noexcept
        void (*gemm_u8)(const QuantizedTile&) noexcept
        void (*unpack_u4)(const uint8_t*, uint8_t*, size_t) noexcept
        void (*gemm_winograd_u4)(const QuantizedTile&) noexcept
        void (*quantize_q8)(const float*, int8_t*, float*, int32_t*, ptrdiff_t, int, int) noexcept
        void (*quantize_q8_for_u4)(const float*, int8_t*, float*, int32_t*, int32_t*, ptrdiff_t, int, int) noexcept
        void (*scale_sums)(const float*, int, const float*, float, float, float*, float*) noexcept
        void (*widen_bf16)(const uint16_t*, float*, size_t) noexcept
        void (*widen_f16)(const uint16_t*, float*, size_t) noexcept
        void (*round_bf16)(const float*, float*, int) noexcept
        void (*round_pairs)(const float*, uint16_t*, int) noexcept
        void (*split_pairs)(const float*, uint16_t*, ptrdiff_t, int) noexcept
        void (*narrow_f16)(const float*, uint16_t*, size_t) noexcept
        void (*rms_norm_f32)(const float*, const float*, float*, int, float) noexcept
        void (*rope_f32)(float*, const float*, const float*, int) noexcept
        void (*silu_mul_f32)(float*, const float*, int) noexcept
        void (*attention_f32)(const AttentionTile&) noexcept
        void (*extremes)(const float*, int, Extremes*) noexcept nogil
        void (*softmax_sums)(const float*, int, double, double*, double*) noexcept nogil
