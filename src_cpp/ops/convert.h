// Between the float formats of checkpoints and those of the engine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "llada/types.h"

namespace llada {

[[noreturn]] void throw_beyond(const char* format, float most, float value);

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

// The largest finite float16.
constexpr float kLargestF16 = 65504.0f;

// Round to nearest, ties to even, for |f| up to kLargestF16; infinities and NaN stay what they are.
inline uint16_t float_to_f16(float f) {
  const uint32_t bits = float_to_bits(f), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  if (magnitude == 0x7f800000u) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000u) {  // below 2^-14, multiples of 2^-24: the unit in the last place of 0.5, where the sum is rounded
    return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13));
}

inline bool is_f16(float f) { return std::fabs(f) <= kLargestF16 && f16_to_float(float_to_f16(f)) == f; }

// Element i of unaligned data.
inline float element(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::float32) {
    float f;
    std::memcpy(&f, static_cast<const char*>(data) + i * 4, sizeof f);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, static_cast<const char*>(data) + i * 2, sizeof h);
  return dtype == DType::float16 ? f16_to_float(h) : bf16_to_float(h);
}

// Element i of unaligned data becomes the nearest number of its dtype. Throws std::out_of_range for a finite value beyond float16, which
// would become infinite.
inline void store_element(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::float32) {
    std::memcpy(static_cast<char*>(data) + i * 4, &value, sizeof value);
    return;
  }
  if (dtype == DType::float16 && std::fabs(value) > kLargestF16 && !std::isinf(value)) throw_beyond("float16", kLargestF16, value);
  uint16_t h = dtype == DType::float16 ? float_to_f16(value) : float_to_bf16(value);
  if (dtype == DType::bfloat16_fast && !(h & 0x7f80)) h &= 0x8000;  // as its products take subnormal factors
  std::memcpy(static_cast<char*>(data) + i * 2, &h, sizeof h);
}

// The same of elements [begin, begin + count) of unaligned data of dtype `from`, which become those of out [count].
void convert_elements(const void* data, DType from, int64_t begin, int64_t count, void* out, DType to);

}  // namespace llada
