// Integer matrix products, written once over the integer vectors of a vec_*.h. Includes the float kernels; the same ODR contract.
#pragma once

#include <string.h>

#include "kernels/bf16-inl.h"
#include "kernels/compiler.h"
#include "kernels/kernels-inl.h"
#include "kernels/scale_search-inl.h"
#include "kernels/statistics-inl.h"

namespace {

using llada::kMaxGroup;
using llada::QuantizedTile;

// Eight depths of a channel in four bytes: the low nibbles are the first four.
void unpack_u4(const uint8_t* packed, uint8_t* out, size_t bytes) {
  constexpr size_t kRow = kPanel * 4;  // four depths of a panel
  for (size_t i = 0; i < bytes; i += kRow, packed += kRow, out += 2 * kRow)
    for (size_t j = 0; j < kRow; ++j) {
      out[j] = packed[j] & 15;
      out[kRow + j] = packed[j] >> 4;
    }
}

// Where a tile's weights come from: one a byte in scratch, one a byte as they are stored, or two a byte as they are stored; with
// Winograd's inner product two a byte for the first tile of rows, which leaves them in scratch for the later ones.
enum class Weights { unpacked, bytes, packed, first, later };

// Memory is read a little at every step of a product, a step being kStep bytes of its weights: a group's worth at once would fill the
// queue of cache misses, in which the tile's own weights then wait.
constexpr ptrdiff_t kStep = kPanel * 4;

// Weights that one tile reads, once: so far ahead of their reading, into the second-level cache, which lets more lines be on their way than
// the first. Of 4 to 16 KiB and of both caches the fastest for two to six rows.
constexpr ptrdiff_t kStream = 8 << 10;
static_assert(kStream % (kMaxGroup * kPanel) == 0, "a stream goes from block to block between two groups");
struct FetchStream {
  const QuantizedTile& tile;
  ptrdiff_t group_bytes;
  const char* next = nullptr;
  FetchStream(const QuantizedTile& t, const Ahead&, ptrdiff_t bytes) : tile(t), group_bytes(bytes) {}
  void begin_group(int g) {
    const ptrdiff_t end = group_bytes * tile.groups, at = group_bytes * g + kStream;
    next = reinterpret_cast<const char*>(tile.w);  // when nothing is ahead, what is there: unmapped addresses cost a look-up each
    if (at < end) next += at;
    else if (at < end + tile.ahead.bytes) next = tile.ahead.data + (at - end);
  }
  template <int Steps>
  void step() {
    for (ptrdiff_t i = 0; i < Steps * kStep; i += kLine) prefetch_second(next + i);
    next += Steps * kStep;
  }
};

// The share of one of several tiles in what the next block is, which may be more than fits beside this one in the first-level cache.
// Divides once a tile: processors before Ice Lake and Zen take as long for a division as for the products of a group.
struct FetchShare {
  const char* data;
  const char* next = nullptr;
  ptrdiff_t group_share = 0;
  ptrdiff_t bytes = 0;  // a step: of two tiles half a line or a whole one, and fewer of more tiles
  FetchShare(const QuantizedTile& t, const Ahead& share, ptrdiff_t group_bytes) : data(reinterpret_cast<const char*>(t.w)) {
    if (share.bytes <= 0) return;
    data = share.data;
    group_share = share.bytes / t.groups;
    bytes = group_share * kStep / group_bytes;
  }
  void begin_group(int g) { next = data + group_share * g; }
  template <int Steps>
  void step() {
    prefetch_second(next);
    for (ptrdiff_t i = kLine; Steps > 1 && i < Steps * bytes; i += kLine) prefetch_second(next + i);  // one step is one line: measured
    next += Steps * bytes;
  }
};

// How a group of 4-bit weights begins and ends, with a base and a start of x, and one of 8-bit weights, with a scale and a sum of x:
// see QuantizedTile. `channel` is where a vector begins in [groups][panel] of t.
template <class Dot, Weights Kind>
struct Group {
  // Sums that begin at zero get their start in the end: where registers are few, GCC keeps starts on the stack all through a group.
  static constexpr bool kStartsLast = Dot::kStartsLast;
  static typename Dot::Sum start(int32_t x_start, const QuantizedTile&, int /*channel*/) { return splat(x_start); }
  static Vec add(Vec total, typename Dot::Sum sum, Vec x_base, Vec w_scale) { return fma(sub(as_float(sum), x_base), w_scale, total); }
};
template <class Dot>
struct Group<Dot, Weights::bytes> {
  static constexpr bool kStartsLast = false;
  static typename Dot::Sum start(int32_t x_sum, const QuantizedTile&, int /*channel*/) { return Dot::start(x_sum); }
  static Vec add(Vec total, typename Dot::Sum sum, Vec x_scale, Vec w_scale) { return fma(to_float(sum), mul(x_scale, w_scale), total); }
};
#ifdef LLADA_WINOGRAD
template <>
struct Group<WinogradDot, Weights::later> : Group<WinogradDot, Weights::first> {
  static IntVec start(int32_t x_start, const QuantizedTile& t, int channel) {
    return add32(splat(x_start), load32(t.w_starts + channel));
  }
};
#endif

// Where sums, totals and operands are as many as the registers or more, GCC 12 spills operands in the inner loop, or moves totals around
// it through others: totals, which wait there, cost less in memory.
inline void keep_in_memory(Vec& total) {
#ifndef _MSC_VER
  __asm__("" : "+m"(total));
#endif
}

// Rows x one panel. The integers of a group are exact; groups are added up in float32, one chain for each element of c.
template <class Dot, Weights Kind, int Rows, class Fetch>
void quantized_tile(const QuantizedTile& t, int first, const Ahead& ahead) {
  constexpr int kVectors = Tiling::kVectors;
  const int8_t* x = t.x + first * t.x_stride;
  const float* x_scales = t.x_scales + first;
  const int32_t* x_sums = t.x_sums + first;
  const uint8_t* w = Kind == Weights::later ? t.unpacked : t.w;
  const ptrdiff_t group_bytes = t.group * kPanel / (Kind == Weights::packed || Kind == Weights::first ? 2 : 1);
  float* c = t.c + first * t.c_stride;
  fetch_results<Rows>(c, t.c_stride);
  Vec total[Rows][kVectors];  // unrolled as in gemm_tile
LLADA_UNROLL(12)
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < kVectors; ++j) total[r][j] = t.accumulate ? load(c + r * t.c_stride + j * Vec::kLanes) : zero();
  using TileGroup = Group<Dot, Kind>;
  constexpr bool kWinograd = Kind == Weights::first || Kind == Weights::later;
  constexpr bool kTotalsInMemory = Tiling::kTotalsInMemory || (kWinograd && (Rows == 5 || Rows == 6));
  Fetch fetch(t, ahead, group_bytes);
  for (int g = 0; g < t.groups; ++g) {
    for (int i = 0; ahead.scales && i < kPanel; i += kLine / 2) prefetch(reinterpret_cast<const char*>(ahead.scales + g * kPanel + i));
    typename Dot::Sum sums[Rows][kVectors];
    for (int r = 0; r < Rows; ++r) {
      for (int j = 0; j < kVectors; ++j) {
        if constexpr (TileGroup::kStartsLast) sums[r][j] = splat(0);
        else sums[r][j] = TileGroup::start(x_sums[r], t, g * kPanel + j * Vec::kLanes);
      }
    }
    fetch.begin_group(g);
    if constexpr (Kind == Weights::first) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(g) * kPanel;
      Dot::template run_first<Rows, kVectors>(x, t.x_stride, w, t.group, sums, fetch, t.unpacked + at * t.group, t.w_starts + at);
    } else if constexpr (Kind != Weights::packed) {
      Dot::template run<Rows, kVectors>(x, t.x_stride, w, t.group, sums, fetch);
    } else if constexpr (Dot::kUnpacks) {
      Dot::template run_packed<Rows, kVectors>(x, t.x_stride, w, t.group, sums, fetch);
    } else {
      uint8_t unpacked[kMaxGroup * kPanel];
      unpack_u4(w, unpacked, static_cast<size_t>(t.group) * kPanel / 2);
      Dot::template run<Rows, kVectors>(x, t.x_stride, unpacked, t.group, sums, fetch);
    }
    Vec w_scale[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      const int at = g * kPanel + j * Vec::kLanes;
      w_scale[j] = Kind == Weights::packed ? load_f16(t.w_stored_scales + at) : load(t.w_scales + at);
    }
    for (int r = 0; r < Rows; ++r) {
      const Vec x_scale = broadcast(x_scales[r]);
      for (int j = 0; j < kVectors; ++j) {
        if constexpr (TileGroup::kStartsLast) sums[r][j] = add32(sums[r][j], TileGroup::start(x_sums[r], t, g * kPanel + j * Vec::kLanes));
        total[r][j] = TileGroup::add(total[r][j], sums[r][j], x_scale, w_scale[j]);
        if constexpr (kTotalsInMemory) keep_in_memory(total[r][j]);
      }
    }
    x += t.group;
    w += group_bytes;
    x_scales += t.x_group_stride;
    x_sums += t.x_group_stride;
  }
LLADA_UNROLL(12)
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < kVectors; ++j) store(c + r * t.c_stride + j * Vec::kLanes, total[r][j]);
}

template <class Dot, Weights Kind>
void gemm_quantized(const QuantizedTile& t) {
  for_each_row_tile<Tiling::kIntRows>(t.rows, t.ahead, [&](auto rows, int first, const Ahead& ahead) {
    if constexpr (Kind != Weights::unpacked) {
      if (t.rows == rows.value) return quantized_tile<Dot, Kind, rows.value, FetchStream>(t, first, ahead);
    }
    quantized_tile<Dot, Kind, rows.value, FetchShare>(t, first, ahead);
  });
}

#ifdef LLADA_WINOGRAD

void gemm_winograd_u4(const QuantizedTile& t) {
  for_each_row_tile<Tiling::kWinogradRows>(t.rows, t.ahead, [&](auto rows, int first, const Ahead& ahead) {
    if (t.rows == rows.value) return quantized_tile<WinogradDot, Weights::first, rows.value, FetchStream>(t, first, ahead);
    if (first == 0) return quantized_tile<WinogradDot, Weights::first, rows.value, FetchShare>(t, first, ahead);
    quantized_tile<WinogradDot, Weights::later, rows.value, FetchShare>(t, first, ahead);
  });
}

#else

// Sum of x1 (x2 + 128).
inline int32_t winograd_sum(const int8_t* x, int n) {
  int32_t total = 0;
  for (int i = 0; i < n; i += 8)
    for (int j = i; j < i + 4; ++j) total += x[j] * (x[j + 4] + 128);
  return total;
}

#endif

// The scale of a group of activations beside 8-bit weights, from its largest magnitude: the finest.
struct FineScale {
  static constexpr float kMost = 0x1.fffffep127f;
  static float of(float largest) { return largest / 127.0f; }
  static float inverse(float largest, float) { return 127.0f / largest; }
  static float scale_or_base(float scale) { return scale; }
  static int32_t sum_or_start(float, int32_t sum) { return sum; }
};

// Beside 4-bit weights: the least power of two with which magnitudes are at most 120; see QuantizedTile.
struct BinaryScale {
  static constexpr float kMost = 120.0f * 0x1p104f;  // beyond it the base would be infinite
  static float of(float largest) {
    const float fine = largest / 120.0f;
    uint32_t bits;
    memcpy(&bits, &fine, sizeof bits);
    bits = (bits + 0x7fffff) & 0x7f800000;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
  }
  static float inverse(float, float scale) { return 1.0f / scale; }
  static float scale_or_base(float scale) { return 0x1.8p23f * scale; }
  static int32_t sum_or_start(float base, int32_t sum) { return start(base, 8 * sum); }
  static int32_t start(float base, int32_t excess) {
    int32_t bits;
    memcpy(&bits, &base, sizeof bits);
    return bits - excess;
  }
};

// q[n] = round(x / scale). A group that is not finite, or above kMost, gets a NaN scale, one of (almost) zeros 0.
template <class Scale>
void quantize_groups(const float* x, int8_t* q, float* scales, int32_t* sums, ptrdiff_t group_stride, int n, int group) {
  constexpr float kSmallest = 1e-30f;  // the inverse of its scale is finite
  for (int g = 0; g * group < n; ++g, x += group, q += group, scales += group_stride, sums += group_stride) {
    const int count = n - g * group < group ? n - g * group : group;
    Vec most = zero(), poison = zero();
    int i = 0;
    for (; i + Vec::kLanes <= count; i += Vec::kLanes) {
      const Vec v = load(x + i);
      most = max(most, max(v, sub(zero(), v)));
      poison = fma(v, zero(), poison);
    }
    float largest_value = largest(most), bad = sum(poison);
    for (; i < count; ++i) {
      largest_value = fmaxf(largest_value, fabsf(x[i]));
      bad += x[i] * 0.0f;
    }
    if (largest_value > Scale::kMost) bad = NAN;
    const bool usable = largest_value >= kSmallest && bad == 0.0f;
    const float scale = bad == 0.0f ? (usable ? Scale::of(largest_value) : 0.0f) : bad;
    int32_t total = 0;
    if (usable) total = narrow_q8(x, q, count, Scale::inverse(largest_value, scale));
    for (i = usable ? count : 0; i < group; ++i) q[i] = 0;
    *scales = Scale::scale_or_base(scale);
    *sums = Scale::sum_or_start(*scales, total);
  }
}

void quantize_q8_for_u4(const float* x, int8_t* q, float* bases, int32_t* starts, int32_t* winograd_starts, ptrdiff_t group_stride, int n,
                        int group) {
  quantize_groups<BinaryScale>(x, q, bases, starts, group_stride, n, group);
  for (int g = 0; winograd_starts && g * group < n; ++g, q += group, bases += group_stride, winograd_starts += group_stride)
    *winograd_starts = BinaryScale::start(*bases, winograd_sum(q, group));
}

// Dot4 and Dot8 of a vec_*.h: sums of products with 4-bit and with 8-bit weights.
constexpr llada::KernelTable make_table(const char* name) {
  return {name, kPanel, kAttentionRows, gemm_f32, gemm_bf16, nullptr, 2, nullptr, nullptr, multiply_add,
          {Tiling::kPackedRows, Tiling::kPackedRows, Tiling::kPackedRows}, gemm_quantized<Dot4, Weights::unpacked>,
          gemm_quantized<Dot4, Weights::packed>, gemm_quantized<Dot8, Weights::bytes>, llada::kQuantizedBlock, llada::kQuantizedBlock,
          unpack_u4, nullptr, quantize_groups<FineScale>, quantize_q8_for_u4, scale_sums, widen_bf16, widen_f16, round_bf16, round_pairs,
          nullptr, narrow_f16, rms_norm_f32, rope_f32, silu_mul_f32, attention_f32, extremes, softmax_sums};
}

}  // namespace
