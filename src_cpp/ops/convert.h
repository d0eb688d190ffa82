// Between the float formats of checkpoints and those of the engine, one element at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "llada/types.h"

namespace llada {

inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

inline float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float f) {
  const uint32_t bits = float_to_bits(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 0x1f, fraction = h & 0x3ff;
  if (exponent == 0x1f) return bits_to_float(sign | 0x7f800000u | (fraction << 13));
  if (exponent == 0) {  // subnormal: fraction * 2^-24, exact in float32
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return bits_to_float(sign | float_to_bits(magnitude));
  }
  return bits_to_float(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// Element i of unaligned data.
inline float element(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::float32) {
    float f;
    std::memcpy(&f, static_cast<const char*>(data) + i * 4, sizeof f);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, static_cast<const char*>(data) + i * 2, sizeof h);
  return dtype == DType::bfloat16 ? bf16_to_float(h) : f16_to_float(h);
}

}  // namespace llada
