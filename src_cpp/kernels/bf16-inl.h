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

struct Bf16Product {
  using Element = uint16_t;
  static constexpr int kDepth = 2;
  static IntVec weights(const uint16_t* w) { return load_bytes(reinterpret_cast<const uint8_t*>(w)); }
  static IntVec factors(const uint16_t* a) {
    int32_t pair;
    memcpy(&pair, a, sizeof pair);
    return splat(pair);
  }
  static Vec add_product(Vec sum, IntVec weights, IntVec factors) { return add_bf16_products(sum, weights, factors); }
};

void gemm_bf16(const Bf16Tile& tile) { gemm<Bf16Product>(tile); }

#else

constexpr void (*gemm_bf16)(const Bf16Tile&) = nullptr;

#endif

}  // namespace
