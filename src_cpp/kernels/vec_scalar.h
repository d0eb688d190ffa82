// Four floats in plain C++: the baseline build, and the oracle of the others.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Vec {
  static constexpr int kLanes = 4;
  float v[kLanes];
};

struct Tiling {
  static constexpr int kVectors = 2;  // of a panel
  static constexpr int kRows = 4;     // accumulators: 4 x 2 of the 16 baseline registers
  static constexpr int kIntRows = 4;
  static constexpr bool kTotalsInMemory = false;
  static constexpr int kPackedRows = 0;
};

template <class F>
inline Vec map(F f) {
  Vec r;
  for (int i = 0; i < Vec::kLanes; ++i) r.v[i] = f(i);
  return r;
}

inline void prefetch(const char*) {}
inline void prefetch_second(const char*) {}
inline Vec zero() { return map([](int) { return 0.0f; }); }
inline Vec broadcast(float x) { return map([=](int) { return x; }); }
inline Vec load(const float* p) { return map([=](int i) { return p[i]; }); }
inline void store(float* p, Vec a) { memcpy(p, a.v, sizeof(a.v)); }
inline Vec load_bf16(const uint16_t* p) {
  return map([=](int i) {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  });
}
// Subnormals are fraction * 2^-24, exact in float32; others move their exponent from bias 15 to 127, and from 31 to 255.
inline Vec load_f16(const uint16_t* p) {
  return map([=](int i) {
    const uint32_t sign = static_cast<uint32_t>(p[i] & 0x8000) << 16, magnitude = p[i] & 0x7fff;
    const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-8f;
    uint32_t bits;
    memcpy(&bits, &small, 4);
    if (magnitude >= 0x400) bits = (magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23);
    bits |= sign;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  });
}
// Below 2^-14 float16 counts in 2^-24, the unit in the last place of 0.5: the sum with it is rounded there. 65520 and more are infinite.
inline void store_f16(uint16_t* p, Vec a) {
  for (int i = 0; i < Vec::kLanes; ++i) {
    uint32_t bits, half;
    memcpy(&bits, &a.v[i], 4);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
      half = 0x7e00;
    } else if (magnitude >= 0x477ff000) {
      half = 0x7c00;
    } else if (magnitude < 0x38800000) {
      float small;
      memcpy(&small, &magnitude, 4);
      small += 0.5f;
      memcpy(&half, &small, 4);
      half -= 0x3f000000;
    } else {
      half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    p[i] = static_cast<uint16_t>((bits >> 16 & 0x8000) | half);
  }
}
inline Vec add(Vec a, Vec b) { return map([&](int i) { return a.v[i] + b.v[i]; }); }
inline Vec sub(Vec a, Vec b) { return map([&](int i) { return a.v[i] - b.v[i]; }); }
inline Vec mul(Vec a, Vec b) { return map([&](int i) { return a.v[i] * b.v[i]; }); }
inline Vec div(Vec a, Vec b) { return map([&](int i) { return a.v[i] / b.v[i]; }); }
inline Vec fma(Vec a, Vec b, Vec c) { return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline Vec max(Vec a, Vec b) { return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Vec min(Vec a, Vec b) { return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
// Lanes [begin, end) are other's.
inline Vec replace(Vec a, Vec other, int begin, int end) {
  return map([&](int i) { return i >= begin && i < end ? other.v[i] : a.v[i]; });
}
inline float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline float largest(Vec a) {
  float m = a.v[0];
  for (int i = 1; i < Vec::kLanes; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}
// x rounded to the nearest integer, for |x| < 2^22: adding 1.5 * 2^23 leaves no fraction bits.
inline Vec round_nearest(Vec a) {
  return map([&](int i) { return (a.v[i] + 12582912.0f) - 12582912.0f; });
}
// 2^n for an integer n in [-126, 127], by building the exponent field.
inline Vec exp2_integer(Vec n) {
  return map([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  });
}

// ---- integers

struct IntVec {
  int32_t v[Vec::kLanes];
};

inline IntVec splat(int32_t x) {
  IntVec a;
  for (int i = 0; i < Vec::kLanes; ++i) a.v[i] = x;
  return a;
}
inline Vec as_float(IntVec a) {  // of the same bits
  Vec b;
  memcpy(&b, &a, sizeof b);
  return b;
}
inline Vec to_float(IntVec a) { return map([&](int i) { return static_cast<float>(a.v[i]); }); }

inline int32_t narrow_q8(const float* x, int8_t* q, int n, float inverse) {
  int32_t total = 0;
  for (int i = 0; i < n; ++i) {
    const float rounded = (x[i] * inverse + 12582912.0f) - 12582912.0f;  // as round_nearest
    total += q[i] = static_cast<int8_t>(rounded);
  }
  return total;
}

struct Dot {
  using Sum = IntVec;
  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int k = 0; k < depth; k += 4, w += 4 * Vectors * Vec::kLanes) {
      fetch.template step<1>();
      for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Vectors; ++j)
          for (int i = 0; i < Vec::kLanes; ++i)
            for (int b = 0; b < 4; ++b) sums[r][j].v[i] += x[r * x_stride + k + b] * w[(j * Vec::kLanes + i) * 4 + b];
    }
  }
};
struct Dot4 : Dot {
  static constexpr bool kUnpacks = false, kStartsLast = false;
};
struct Dot8 : Dot {
  static Sum start(int32_t x_sum) { return splat(-128 * x_sum); }
};

}  // namespace
