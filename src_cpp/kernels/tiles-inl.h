// Matrix products on the tile registers of AMX: sixteen rows by sixteen channels at a time. Includes the other kernels; the same ODR
// contract.
#pragma once

#include "kernels/quantized-inl.h"

namespace {

static_assert(Vec::kLanes == 16 && Tiling::kVectors == 2, "a panel is two tiles wide");

using llada::kMinGroup;
using llada::kSplitParts;
using llada::TileSetup;

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row of a tile
// Rows of integers from which on tiles were faster than vpdpbusd: in groups of 32 what the vectors do for a group takes longer than its
// products, and 8-bit weights of few rows are waited for.
constexpr int least_tile_rows(Weights kind, int group) { return group == 32 ? 28 : kind == Weights::bytes ? 14 : 8; }

// Tiles 0 to 3 hold sums, 4 and 5 rows of x, 6 and 7 weights: in each of their rows four bytes of 16 channels, as panels lie in memory.
// Instructions, because the intrinsics of GCC 12 hide from the compiler that a tile comes from memory.
template <int Tile>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
inline void load_tile(const void* from, ptrdiff_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
inline void store_tile(void* to, ptrdiff_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}
// Signed bytes of x times unsigned ones of w, added to int32.
template <int Sum, int X, int W>
inline void add_byte_tiles() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}
// Of bfloat16, added to float32: the products of a pair's lower halves are a chain of sums of their own, from zero over the depth of a
// tile, those of its upper halves another, and their sum is added. Subnormal numbers are zeros.
template <int Sum, int X, int W>
inline void add_bf16_tiles() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
}

void enter_tiles(int rows, int depth_bytes, TileSetup* before) {
  __asm__ volatile("sttilecfg %0" : "=m"(*before));
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  TileSetup setup = {};
  setup.palette = 1;
  for (int t = 0; t < 8; ++t) {
    const bool x = t == 4 || t == 5, w = t > 5;
    setup.bytes[t] = static_cast<uint16_t>(x ? depth_bytes : kTileBytes);
    setup.rows[t] = static_cast<uint8_t>(w ? depth_bytes / 4 : (rows + tiles - 1) / tiles);
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(setup));
}

void leave_tiles(const TileSetup& before) {
  if (before.palette == 0) __asm__ volatile("tilerelease" ::: "memory");
  else __asm__ volatile("ldtilecfg %0" ::"m"(before));
}

// ---- bfloat16

// Two tiles of rows, `second` rows apart, or one, times a panel. Factors of x are the sums of Parts numbers, which lie in planes.
template <int Parts, int Tiles>
void bf16_tiles(const Bf16Tile& t, ptrdiff_t plane, int first, int second, int rows, const Ahead& ahead) {
  constexpr int kDepth = kTileBytes / 2;
  const ptrdiff_t x_stride = t.a_stride * 2, w_stride = kPanel * 4;
  const uint16_t *x = t.a + first * t.a_stride, *second_x = x + second * t.a_stride, *w = t.w;
  const char* next = ahead.bytes > 0 ? ahead.data : reinterpret_cast<const char*>(w);
  const ptrdiff_t step = ahead.bytes > 0 ? ahead.bytes * kDepth / t.depth : 0;
  zero_tile<0>();
  zero_tile<1>();
  if constexpr (Tiles == 2) zero_tile<2>(), zero_tile<3>();
  for (int k = 0; k < t.depth; k += kDepth, x += kDepth, second_x += kDepth, w += kDepth * kPanel, next += step) {
    load_tile<6>(w, w_stride);
    load_tile<7>(w + kTileBytes / 2, w_stride);
    for (ptrdiff_t i = 0; i < step; i += kLine) prefetch_second(next + i);
    for (int part = Parts; part-- > 0;) {  // the small ones first
      load_tile<4>(x + part * plane, x_stride);
      if constexpr (Tiles == 2) load_tile<5>(second_x + part * plane, x_stride);
      add_bf16_tiles<0, 4, 6>();
      add_bf16_tiles<1, 4, 7>();
      if constexpr (Tiles == 2) add_bf16_tiles<2, 5, 6>(), add_bf16_tiles<3, 5, 7>();
    }
  }
  alignas(64) float sums[Tiles * kTileRows][kPanel];  // a row of the second tile that the first one has too is the same there
  constexpr ptrdiff_t kStride = sizeof sums[0];
  store_tile<0>(sums[0], kStride);
  store_tile<1>(sums[0] + Vec::kLanes, kStride);
  if constexpr (Tiles == 2) store_tile<2>(sums[second], kStride), store_tile<3>(sums[second] + Vec::kLanes, kStride);
  float* c = t.c + first * t.c_stride;
  for (int r = 0; r < rows; ++r, c += t.c_stride)
    for (int j = 0; j < kPanel; j += Vec::kLanes) {
      const Vec sum = load(sums[r] + j);
      store(c + j, t.accumulate ? add(load(c + j), sum) : sum);
    }
}

template <int Parts>
void gemm_bf16_tiles(const Bf16Tile& t, ptrdiff_t plane) {
  const int tiles = (t.rows + kTileRows - 1) / kTileRows, pairs = (tiles + 1) / 2;
  if (tiles == 0) return;
  const int least = t.rows / tiles, shorter = tiles - t.rows % tiles;  // tiles of `least` rows, as in for_each_row_tile
  const auto begin = [&](int tile) { return tile * least + (tile > shorter ? tile - shorter : 0); };
  const ptrdiff_t share = t.ahead.bytes / pairs;
  for (int i = 0; i < pairs; ++i) {
    const Ahead own = {t.ahead.data + share * i, share};
    const int first = begin(2 * i);
    if (2 * i + 1 < tiles) bf16_tiles<Parts, 2>(t, plane, first, begin(2 * i + 1) - first, begin(2 * i + 2) - first, own);
    else bf16_tiles<Parts, 1>(t, plane, first, 0, t.rows - first, own);
  }
}

void gemm_tiles_bf16(const Bf16Tile& t) { gemm_bf16_tiles<1>(t, 0); }
void gemm_split_bf16(const Bf16Tile& t, ptrdiff_t plane) { gemm_bf16_tiles<kSplitParts>(t, plane); }

// Of x = a + b + c, the digits from the first on: a is x cut off after 8 binary digits, b the rest cut off likewise, and c what is left, 8
// digits at most. Of a number that is not finite a is that, and b and c are zeros.
void split_pairs(const float* x, uint16_t* out, ptrdiff_t plane, int n) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000));
  for (int i = 0; i < n; i += Vec::kLanes, out += Vec::kLanes) {
    const __mmask16 live = static_cast<__mmask16>(n - i < Vec::kLanes ? (1u << (n - i)) - 1 : 0xffff);
    __m512 rest = _mm512_maskz_loadu_ps(live, x + i);
    const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_sub_ps(rest, rest), _mm512_setzero_ps(), _CMP_EQ_OQ);
    // A NaN whose digits are all in the lower half would be cut off to infinity.
    const __m512i quiet = _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(rest, rest, _CMP_UNORD_Q), 0x400000);
    for (int part = 0; part < kSplitParts; ++part) {
      const __m512i bits = _mm512_and_si512(_mm512_castps_si512(rest), upper);
      rest = _mm512_maskz_sub_ps(finite, rest, _mm512_castsi512_ps(bits));
      // Two depths in 64 bits: the first one's upper half stays, below it comes that of the second.
      const __m512i numbers = part == 0 ? _mm512_or_si512(bits, quiet) : bits;
      const __m512i pairs = _mm512_or_si512(numbers, _mm512_srli_epi64(numbers, 48));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + part * plane), _mm512_cvtepi64_epi32(pairs));
    }
  }
}

// ---- integers

// A tile of rows times one of channels. Sums of a group are stored and taken up again by the vectors, which keep the totals.
template <class Group, int Rows, class Fetch>
void integer_tile(const QuantizedTile& t, int first, int channel, const Ahead& ahead) {
  alignas(64) int32_t sums[2][kTileRows][Vec::kLanes];
  const ptrdiff_t x_stride = t.x_stride, c_stride = t.c_stride, group_stride = t.x_group_stride;
  const int groups = t.groups, group = t.group, step = group < kTileBytes ? group : kTileBytes;
  const int8_t* x = t.x + first * x_stride;
  const uint8_t* w = t.w + channel * 4;
  const float *x_scales = t.x_scales + first, *w_scales = t.w_scales + channel;
  const int32_t* x_sums = t.x_sums + first;
  float* c = t.c + first * c_stride + channel;
  Vec total[Rows];
LLADA_UNROLL(16)
  for (int r = 0; r < Rows; ++r) total[r] = t.accumulate ? load(c + r * c_stride) : zero();
  const auto add_group = [&](const int32_t (&sum)[kTileRows][Vec::kLanes]) {
    const Vec w_scale = load(w_scales);
LLADA_UNROLL(16)
    for (int r = 0; r < Rows; ++r) {
      const IntVec whole = add32(load_bytes(reinterpret_cast<const uint8_t*>(sum[r])), Group::start(x_sums[r], t, 0));
      total[r] = Group::add(total[r], whole, broadcast(x_scales[r]), w_scale);
    }
    x_scales += group_stride, x_sums += group_stride, w_scales += kPanel;
  };
  Fetch fetch(t, ahead, static_cast<ptrdiff_t>(group) * kPanel);
  for (int g = 0; g < groups; ++g) {
    fetch.begin_group(g);
    zero_tile<0>();
    for (int k = 0; k < group; k += step, x += step, w += step * kPanel) {
      load_tile<4>(x, x_stride);
      load_tile<6>(w, kPanel * 4);
      add_byte_tiles<0, 4, 6>();
      if (channel == 0) {
        if (step == kTileBytes) fetch.template step<kTileBytes / 4>();
        else fetch.template step<kMinGroup / 4>();
      }
    }
    if (g > 0) add_group(sums[(g - 1) % 2]);  // while the products go on
    store_tile<0>(sums[g % 2], kTileBytes);
  }
  add_group(sums[(groups - 1) % 2]);
LLADA_UNROLL(16)
  for (int r = 0; r < Rows; ++r) store(c + r * c_stride, total[r]);
}

template <class Dot, Weights Kind>
void gemm_integer_tiles(const QuantizedTile& t) {
  if (t.rows < least_tile_rows(Kind, t.group)) return gemm_quantized<Dot, Kind>(t);
  for_each_row_tile<kTileRows>(t.rows, t.ahead, [&](auto rows, int first, const Ahead& ahead) {
    using Groups = Group<Dot, Kind>;
    if (Kind == Weights::bytes && t.rows == rows.value) integer_tile<Groups, rows.value, FetchStream>(t, first, 0, ahead);
    else integer_tile<Groups, rows.value, FetchShare>(t, first, 0, ahead);
    integer_tile<Groups, rows.value, FetchShare>(t, first, Vec::kLanes, {});
  });
}

}  // namespace
