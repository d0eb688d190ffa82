// Four floats in a NEON register of aarch64; with LLADA_DOTPROD the dot products of bytes of ARMv8.2 as well.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <string.h>

namespace {

struct Vec {
  static constexpr int kLanes = 4;
  float32x4_t v;
};

struct Tiling {
  static constexpr int kVectors = 4;
  static constexpr int kRows = 6;  // 6 x 4 accumulators, four weights and a broadcast: 29 of 32 registers
#ifdef LLADA_DOTPROD
  static constexpr int kIntRows = 4;  // 4 x 4 sums, four activations and some weights, all in registers; the float totals wait in memory
#else
  static constexpr int kIntRows = 2;  // 2 x 4 pairs of sums, four activations and two weights: 22 of 32 registers
#endif
  static constexpr bool kTotalsInMemory = false;
  static constexpr int kPackedRows = 0;
};

inline void prefetch(const char* p) { __builtin_prefetch(p); }
inline void prefetch_second(const char* p) { __builtin_prefetch(p, 0, 2); }  // into the second-level cache
inline Vec zero() { return {vdupq_n_f32(0.0f)}; }
inline Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
inline Vec load(const float* p) { return {vld1q_f32(p)}; }
inline void store(float* p, Vec a) { vst1q_f32(p, a.v); }
inline Vec load_bf16(const uint16_t* p) { return {vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16))}; }
inline Vec load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
inline void store_f16(uint16_t* p, Vec a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
inline Vec add(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
// Of a NaN and a number these give the number, as exponential() says of itself; fmax and fmin would give the NaN.
inline Vec max(Vec a, Vec b) { return {vmaxnmq_f32(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {vminnmq_f32(a.v, b.v)}; }
// Lanes [begin, end) are other's.
inline Vec replace(Vec a, Vec other, int begin, int end) {
  constexpr int32_t kLane[] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(kLane);
  return {vbslq_f32(vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end))), other.v, a.v)};
}
inline float sum(Vec a) {
  const float32x2_t x = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
  return vget_lane_f32(vpadd_f32(x, x), 0);
}
inline float largest(Vec a) { return vmaxnmvq_f32(a.v); }
inline Vec round_nearest(Vec a) { return {vrndnq_f32(a.v)}; }
inline Vec exp2_integer(Vec n) {
  return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127)), 23))};
}

// ---- integers

struct IntVec {
  int32x4_t v;
};

inline Vec as_float(IntVec a) { return {vreinterpretq_f32_s32(a.v)}; }  // of the same bits
inline Vec to_float(IntVec a) { return {vcvtq_f32_s32(a.v)}; }

inline int32_t narrow_q8(const float* x, int8_t* q, int n, float inverse) {
  int32x4_t totals = vdupq_n_s32(0);
  int32_t total = 0;
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse));
    const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), inverse));
    totals = vaddq_s32(totals, vaddq_s32(low, high));
    vst1_s8(q + i, vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high))));
  }
  for (; i < n; ++i) total += q[i] = static_cast<int8_t>(vcvtns_s32_f32(x[i] * inverse));
  return total + vaddvq_s32(totals);
}

// Sums of products with weights [depth / 4][panel][4] bytes: a 32-bit lane is a channel.
inline IntVec splat(int32_t x) { return {vdupq_n_s32(x)}; }
inline int8x16_t load_bytes(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }

// 4-bit codes are signed bytes as they stand; their zero point is in what the sum starts from.
struct Codes4 {
  static int8x16_t load(const uint8_t* p) { return load_bytes(p); }
};

// 8-bit codes become signed bytes around their zero point of 128.
struct Codes8 {
  static int8x16_t load(const uint8_t* p) { return veorq_s8(load_bytes(p), vdupq_n_s8(-128)); }
};

#ifdef LLADA_DOTPROD

// sdot: four products of bytes added to int32, exactly; the four bytes of x are a lane of a vector that holds four such.
template <class Codes>
struct Dot {
  using Sum = IntVec;

  template <int Lane, int Rows, int Vectors>
  static void add_lane(const int8x16_t (&quads)[Rows], const uint8_t* w, Sum (&sums)[Rows][Vectors]) {
    for (int j = 0; j < Vectors; ++j) {
      const int8x16_t weight = Codes::load(w + 16 * (Lane * Vectors + j));
      for (int r = 0; r < Rows; ++r) sums[r][j].v = vdotq_laneq_s32(sums[r][j].v, weight, quads[r], Lane);
    }
  }

  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int k = 0; k < depth; k += 16, w += 4 * 16 * Vectors) {
      int8x16_t quads[Rows];
      for (int r = 0; r < Rows; ++r) quads[r] = vld1q_s8(x + r * x_stride + k);
      fetch.template step<4>();
      add_lane<0>(quads, w, sums);
      add_lane<1>(quads, w, sums);
      add_lane<2>(quads, w, sums);
      add_lane<3>(quads, w, sums);
    }
  }
};
struct Dot4 : Dot<Codes4> {
  static constexpr bool kUnpacks = false, kStartsLast = false;
};
struct Dot8 : Dot<Codes8> {
  static Sum start(int32_t) { return splat(0); }
};

#else

// Four bytes of x in every channel.
inline int8x16_t broadcast_bytes(const int8_t* p) {
  int32_t quad;
  memcpy(&quad, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}

// smull and smlal: products of bytes in int16, two channels in each half. A product with a 4-bit weight is at most 15 * 127 = 1905, so
// eight of them, and eight of the next depth added to those, fit before sadalp widens them: 16 * 1905 = 30480.
struct Dot4 {
  static constexpr bool kUnpacks = false, kStartsLast = false;
  using Sum = IntVec;
  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int begin = 0; begin < depth; begin += 32) {
      int16x8_t low[Rows][Vectors], high[Rows][Vectors];
      for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Vectors; ++j) low[r][j] = high[r][j] = vdupq_n_s16(0);
      fetch.template step<8>();
      for (int k = begin; k < begin + 32; k += 4, w += 16 * Vectors) {
        int8x16_t quads[Rows];
        for (int r = 0; r < Rows; ++r) quads[r] = broadcast_bytes(x + r * x_stride + k);
        for (int j = 0; j < Vectors; ++j) {
          const int8x16_t weight = Codes4::load(w + 16 * j);
          for (int r = 0; r < Rows; ++r) {
            low[r][j] = vmlal_s8(low[r][j], vget_low_s8(weight), vget_low_s8(quads[r]));
            high[r][j] = vmlal_high_s8(high[r][j], weight, quads[r]);
          }
        }
      }
      for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Vectors; ++j) sums[r][j].v = vpadalq_s16(sums[r][j].v, vpaddq_s16(low[r][j], high[r][j]));
    }
  }
};

// With 8-bit weights, -127 to 127, two products are at most 2 * 127 * 127 = 32258: sadalp after every second.
struct Dot8 {
  struct Sum {
    int32x4_t low, high;  // two sums for each channel, two channels in each half
  };
  static Sum start(int32_t) { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int k = 0; k < depth; k += 8, w += 2 * 16 * Vectors) {
      fetch.template step<2>();
      for (int j = 0; j < Vectors; ++j) {
        const int8x16_t first = Codes8::load(w + 16 * j), second = Codes8::load(w + 16 * (Vectors + j));
        for (int r = 0; r < Rows; ++r) {
          const int8x16_t x_first = broadcast_bytes(x + r * x_stride + k), x_second = broadcast_bytes(x + r * x_stride + k + 4);
          const int16x8_t low = vmull_s8(vget_low_s8(first), vget_low_s8(x_first));
          const int16x8_t high = vmull_high_s8(first, x_first);
          sums[r][j].low = vpadalq_s16(sums[r][j].low, vmlal_s8(low, vget_low_s8(second), vget_low_s8(x_second)));
          sums[r][j].high = vpadalq_s16(sums[r][j].high, vmlal_high_s8(high, second, x_second));
        }
      }
    }
  }
};

inline Vec to_float(Dot8::Sum a) { return {vcvtq_f32_s32(vpaddq_s32(a.low, a.high))}; }

#endif

}  // namespace
