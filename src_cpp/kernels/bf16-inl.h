// Products of bfloat16 numbers, and their rounding. Includes the float kernels; the same ODR contract.
#pragma once

#include <string.h>

#include "kernels/kernels-inl.h"

namespace {

using llada::Bf16Tile;

// The bfloat16 nearest to x as the upper half of a float32: even on ties, NaN stays NaN, what is subnormal becomes zero.
inline uint32_t nearest_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t upper = (nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
  return upper & 0x7f800000u ? upper : upper & 0x80000000u;
}

void round_bf16(const float* x, float* out, int n) {
  for (int i = 0; i < n; ++i) {
    const uint32_t bits = nearest_bf16(x[i]);
    memcpy(out + i, &bits, sizeof bits);
  }
}

void round_pairs(const float* x, uint16_t* out, int n) {
  int i = 0;
  for (; i + 1 < n; i += 2) {
    const uint32_t pair = nearest_bf16(x[i]) | nearest_bf16(x[i + 1]) >> 16;
    memcpy(out + i, &pair, sizeof pair);
  }
  if (i == n) return;
  const uint32_t last = nearest_bf16(x[i]);
  memcpy(out + i, &last, sizeof last);
}

#ifdef LLADA_BF16

// Rows x one panel: as gemm_tile of floats, two depths at a time.
template <int Rows>
void bf16_tile(const Bf16Tile& t, int first, const Ahead& ahead) {
  constexpr int kVectors = Tiling::kVectors, kVectorPairs = Vec::kLanes * 2;
  const uint16_t* a = t.a + first * t.a_stride;
  const uint16_t* w = t.w;
  float* c = t.c + first * t.c_stride;
  Vec acc[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < kVectors; ++j) acc[r][j] = zero();
  const char* next = ahead.bytes > 0 ? ahead.data : reinterpret_cast<const char*>(w);
  const ptrdiff_t step = ahead.bytes / (t.depth / 2);
  for (int k = 0; k < t.depth; k += 2, w += kVectors * kVectorPairs, next += step) {
    prefetch(next);
    if (step > kLine) prefetch(next + kLine);
    IntVec weight[kVectors];
    for (int j = 0; j < kVectors; ++j) weight[j] = load_bytes(reinterpret_cast<const uint8_t*>(w + j * kVectorPairs));
    for (int r = 0; r < Rows; ++r) {
      int32_t pair;
      memcpy(&pair, a + r * t.a_stride + k, sizeof pair);
      const IntVec x = splat(pair);
      for (int j = 0; j < kVectors; ++j) add_pair(acc[r][j], weight[j], x);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int j = 0; j < kVectors; ++j) {
      float* p = c + r * t.c_stride + j * Vec::kLanes;
      store(p, t.accumulate ? add(load(p), acc[r][j]) : acc[r][j]);
    }
  }
}

void gemm_bf16(const Bf16Tile& tile) {
  for_each_row_tile<Tiling::kRows>(tile.rows, tile.ahead,
                                   [&](auto count, int first, const Ahead& ahead) { bf16_tile<count.value>(tile, first, ahead); });
}

#else

constexpr void (*gemm_bf16)(const Bf16Tile&) = nullptr;

#endif

}  // namespace
