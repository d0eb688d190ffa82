// The contract between ops and the per-ISA kernels: one table of function pointers for each instruction set.
//
// A kernel neither allocates, throws nor threads, takes unaligned pointers, and treats each row alone: the bits of a result row
// depend on that row and the weights only, never on how many rows are computed together.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/platform.h"

namespace llada {

// Weights of a linear layer are stored in panels: `panel` output channels side by side, [depth][panel].
// Panels never exceed this many channels.
constexpr int kMaxPanel = 32;

// Depth of one accumulation block. A sum over K is a left-to-right chain of blocks, each summed from zero: shorter chains halve
// the digits lost at K = 12288, and a float32 block of a panel (256 x 32 x 4 bytes = 32 KiB) stays in the first-level cache.
constexpr int kDepthBlock = 256;

// The same of weights that are multiplied with rounded activations: as bfloat16 a panel's block takes as much.
constexpr int kRoundedBlock = 512;

// Depth of one block of quantised weights: unpacked, a panel's block (1024 x 32 bytes = 32 KiB) stays in the first-level cache.
constexpr int kQuantizedBlock = 1024;  // the most of any build
constexpr int kTileDepth = 64;  // bytes
constexpr int kMinGroup = 32;
constexpr int kMaxGroup = 128;

// Scales that are tried for a group of 4-bit weights, and lanes that sums over its weights have in every build.
constexpr int kScaleCandidates = 16;
constexpr int kSumLanes = 8;

// Keys of one attention block; a multiple of every panel.
constexpr int kKeyBlock = 128;

// Largest head dimension, and most rows of a tile, that attention has room for.
constexpr int kMaxHeadDim = 256;
constexpr int kMaxAttentionRows = 24;

// One query tile of one head against every key of its request.
struct AttentionTile {
  const float* q;      // [rows, head_dim], row stride q_stride
  ptrdiff_t q_stride;
  const float* k;      // panels of keys, [ceil(keys / panel)][head_dim][panel]; anything may lie behind the last key
  const float* v;      // [keys][v_width], v_width = head_dim rounded up to a multiple of panel, zero-padded
  float* out;          // [rows, head_dim], row stride out_stride
  ptrdiff_t out_stride;
  int rows;
  int keys;
  int head_dim;
  float scale;         // on q . k
  const int32_t* hidden = nullptr;  // [rows] a key that the row does not see, nor a NaN in it, of two or more; -1 or nullptr: none
};

// What is read from memory after this block. Rows of several tiles fetch it into the cache meanwhile, a share with each tile: hardware
// prefetching alone fetches during the first of them only, and the arithmetic of that one is too short to hide it. Integer weights that
// one tile reads once are a stream, fetched a fixed distance ahead through their own end and into this.
struct Ahead {
  const char* data = nullptr;
  ptrdiff_t bytes = 0;
  const uint16_t* scales = nullptr;  // [groups][panel] of quantised weights: those of the same block
};

// One block of a product of floats: c[rows, panel] = a[rows, depth] . w[depth, panel]
template <class Element>
struct GemmTile {
  const Element* a;    // [rows, depth], row stride a_stride
  ptrdiff_t a_stride;
  const Element* w;    // [depth, panel], row stride w_stride
  ptrdiff_t w_stride;
  float* c;            // [rows, panel], row stride c_stride
  ptrdiff_t c_stride;
  int rows;
  int depth;
  int accumulate;      // add to c
  Ahead ahead;
};
using FloatTile = GemmTile<float>;

// Of bfloat16 numbers in pairs, two depths of a row or channel in 32 bits, the first in the upper half: the depth is a multiple of
// KernelTable::paired_depth, w is [depth / 2][panel][2], and its stride is that of pairs. Products are exact and added as float32 in the
// order of the depth: the bits of gemm_f32, but that factors and sums below 2^-126 count as zeros. With tile registers each 32 depths are
// summed by themselves, those of every other depth first.
using Bf16Tile = GemmTile<uint16_t>;

// A float32 is the sum of three bfloat16 (Henry, Tang and Heinecke, arXiv:1904.06376): times bfloat16 weights, whose products with each of
// them are exact, that is float32 arithmetic.
constexpr int kSplitParts = 3;

// One block of a product of quantised matrices: c[rows, panel] = sum over groups of
//   x_scale[row, group] w_scale[group, channel] sum over depth of x[row, depth] (w[depth, channel] - zero)
// with unsigned w of 4 bits and zero 8 and x in [-120, 120], or w of 8 bits and zero 128 (w at least 1) and x in [-127, 127], in exact
// int32 sums.
//
// Beside 4-bit weights x_scale is a power of two, and a sum is scaled while it is built. An int32 that starts as the bits of the float32
// base = 1.5 * 2^23 x_scale, and to which an integer |n| < 2^22 is added, is the float32 base + n x_scale, exactly; a group's sum is within
// 128 * 120 * 8 = 122,880. What is left is `sum - base`, which runs where multiplications do not: converting and multiplying each sum by
// x_scale takes a fifth of the multipliers' time in groups of 32.
//
// Winograd's inner product (IEEE Transactions on Computers C-17, 1968, 693-694) needs one multiplication for two products,
//   x1 w1 + x2 w2 = (x1 + w2) (x2 + w1) - x1 x2 - w1 w2,
// and two additions more; the products of x alone and of w alone are summed once a row and once a channel. Here x1 is the first four of
// eight depths and x2 the next. With signed weights of 4 bits and |x| <= 120
//   x1 + w2 in [-128, 127] and x2 + (w1 + 128) in [0, 255]
// are bytes as vpdpbusd takes them. The 128 costs nothing: what is taken off again is then
//   x1 (x2 + 128), of a row and group, and (w1 + 128) w2, of a channel and group.
// Sums are exact, so the bits are those of the other 4-bit kernels.
struct QuantizedTile {
  const int8_t* x;            // [rows, groups * group], row stride x_stride
  ptrdiff_t x_stride;
  const float* x_scales;      // [groups][rows], groups x_group_stride apart; of 4 bits the bases
  const int32_t* x_sums;      // [groups][rows] sum of x, in the same way; of 4 bits the bits of the base less zero times that sum, for
                              // gemm_winograd_u4 less the sum of x1 (x2 + 128)
  ptrdiff_t x_group_stride;
  const uint8_t* w;           // [groups * group / 4][panel][4], one a byte; [groups * group / 8][panel][4], two a byte
  // [groups][panel]: widened, once a block for all its tiles of rows; or as they are stored, float16, which gemm_packed_u4 alone reads,
  // because its blocks have any depth.
  const float* w_scales;
  const uint16_t* w_stored_scales;
  float* c;                   // [rows, panel], row stride c_stride
  ptrdiff_t c_stride;
  int rows;
  int groups;
  int group;                  // a multiple of 32, at most kMaxGroup
  int accumulate;             // add to c
  Ahead ahead;
  // What gemm_winograd_u4 writes for its later tiles of rows: w1 + 128 and w2, [groups * group / 8][2][panel][4], and [groups][panel] less
  // the sums of (w1 + 128) w2.
  uint8_t* unpacked = nullptr;
  int32_t* w_starts = nullptr;
};

// The largest logit of a row, the lowest index where it stands (-1 when nothing is above -inf), the second largest (the same again when
// two are equal), and whether there is a NaN, beside which the others mean nothing.
struct Extremes {
  float most;
  float second;
  int32_t index;
  int32_t nan;
};

// How tile registers are set up. Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, LDTILECFG.
struct TileSetup {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];  // of a row
  uint8_t rows[16];
};
static_assert(sizeof(TileSetup) == 64, "as the processor reads it");

struct KernelTable {
  const char* name;
  int panel;           // output channels of a weight panel
  int attention_rows;  // most query rows of an AttentionTile

  void (*gemm_f32)(const FloatTile& tile);
  void (*gemm_bf16)(const Bf16Tile& tile);  // nullptr where gemm_f32 of rounded numbers is as fast
  // The same of rows a that are the sums of kSplitParts numbers, `plane` apart. nullptr where gemm_f32 is as fast.
  void (*gemm_split_bf16)(const Bf16Tile& tile, ptrdiff_t plane);
  int paired_depth;

  // Tile registers are a state of the thread. Before gemm_bf16, gemm_split_bf16, gemm_u4 and gemm_u8, and for all of them until
  // leave_tiles, they are set up for tiles of so many rows and, in bytes, of the depth that is multiplied at once: that of the group for
  // integers, but at most kTileDepth, which is that of bfloat16. How they were set up before is kept, and comes back: other libraries set
  // up a thread's once for all. nullptr where there are none.
  void (*enter_tiles)(int rows, int depth_bytes, TileSetup* before);
  void (*leave_tiles)(const TileSetup& before);

  // Float multiply-adds on registers alone, enough chains of them to hide their latency: what no product is faster than. Returns the
  // operations done in `rounds`; their results go to sink[kMaxPanel].
  int64_t (*multiply_add)(int64_t rounds, float* sink);

  // 4-bit and 8-bit weights, one a byte; and 4-bit weights as they are stored, [groups * group / 8][panel][4], unpacked for every tile of
  // rows anew, which is the fastest for up to packed_rows rows.
  int packed_rows[3];  // in groups of 32, 64 and 128
  void (*gemm_u4)(const QuantizedTile& tile);
  void (*gemm_packed_u4)(const QuantizedTile& tile);
  void (*gemm_u8)(const QuantizedTile& tile);
  int block_u4, block_u8;  // depths of a block, but of packed weights

  // Two weights a byte -> one: [depth / 8][panel][4] -> [depth / 4][panel][4]; the low nibbles are the first four depths.
  void (*unpack_u4)(const uint8_t* packed, uint8_t* out, size_t bytes);

  // 4-bit weights as they are stored, by Winograd's inner product: for more than packed_rows rows. nullptr where it gains nothing.
  void (*gemm_winograd_u4)(const QuantizedTile& tile);

  // q[n] = x[n] / scale rounded, padded with zeros to whole groups; scales, sums [groups], group_stride apart, as QuantizedTile takes them
  // beside 8-bit weights and beside 4-bit ones. A group with NaN or infinity has scale NaN; beside 4-bit weights, one above
  // 120 * 2^104 = 2.4e33 too. Beside 4-bit weights |q| <= 120; winograd_starts, those of gemm_winograd_u4, may be nullptr.
  void (*quantize_q8)(const float* x, int8_t* q, float* scales, int32_t* sums, ptrdiff_t group_stride, int n, int group);
  void (*quantize_q8_for_u4)(const float* x, int8_t* q, float* bases, int32_t* starts, int32_t* winograd_starts, ptrdiff_t group_stride,
                             int n, int group);

  // Of the integers q = w inverse, rounded and held within [lowest, highest], that each inverse [kScaleCandidates] makes of weights w [count]:
  // w_q, the sum of w q, and q_q, that of q q, both [kSumLanes][kScaleCandidates], lane j of weights j, j + kSumLanes and so on.
  // |w inverse| < 2^22. The same bits in every build.
  void (*scale_sums)(const float* w, int count, const float* inverses, float lowest, float highest, float* w_q, float* q_q);

  // out[n] = x[n], exact.
  void (*widen_bf16)(const uint16_t* x, float* out, size_t n);
  void (*widen_f16)(const uint16_t* x, float* out, size_t n);

  // The bfloat16 nearest to x[n], even on ties, subnormal ones zero: as float32, or in the pairs of gemm_bf16, of an odd n with a zero.
  void (*round_bf16)(const float* x, float* out, int n);
  void (*round_pairs)(const float* x, uint16_t* out, int n);
  // The numbers, in pairs, that x[n] is the sum of, for gemm_split_bf16; of an n that is no multiple of 16 with zeros up to that.
  void (*split_pairs)(const float* x, uint16_t* out, ptrdiff_t plane, int n);

  // out[n] = the float16 nearest to x[n], even on ties: infinite from 65520 on. NaN stays NaN.
  void (*narrow_f16)(const float* x, uint16_t* out, size_t n);

  // out[n] = x[n] / sqrt(mean(x^2) + eps) * weight[n]
  void (*rms_norm_f32)(const float* x, const float* weight, float* out, int n, float eps);

  // Rotates one head in place, pairs (i, i + half): cos, sin are [half].
  void (*rope_f32)(float* x, const float* cos, const float* sin, int half);

  // gate[n] = gate[n] / (1 + exp(-gate[n])) * up[n]
  void (*silu_mul_f32)(float* gate, const float* up, int n);

  // Softmax attention without a score matrix: running maximum and sum over blocks of keys (Milakov & Gimelshein,
  // arXiv:1805.02867).
  void (*attention_f32)(const AttentionTile& tile);

  // Of logits x[n], the same bits in every build.
  void (*extremes)(const float* x, int n, Extremes* out);
  // total = sum of exp(x - shift), moment = sum of exp(x - shift) (x - shift), for x <= shift, in float64; -inf counts for nothing.
  void (*softmax_sums)(const float* x, int n, double shift, double* total, double* moment);
};

// Builds of the table; those of an architecture exist in its libraries only.
extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvxVnniKernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512VnniKernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAvx512AmxKernels;
extern const KernelTable kNeonKernels;
extern const KernelTable kNeonDotKernels;

}  // namespace llada
