// Eight floats in a YMM register: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

namespace {

struct Vec {
  static constexpr int kLanes = 8;
  __m256 v;
};

struct Tiling {
  static constexpr int kVectors = 2;
  static constexpr int kRows = 6;  // 6 x 2 accumulators, two weights and a broadcast: 15 of 16 registers
#ifdef LLADA_VNNI
  static constexpr int kIntRows = 6;  // 6 x 2 sums, two weights and a broadcast
#else
  static constexpr int kIntRows = 5;  // 5 x 2 sums, two weights, a broadcast and a product
#endif
  static constexpr bool kTotalsInMemory = true;  // between groups
  static constexpr bool kPairsStartLast = true;
  static constexpr int kPackedRows = 12;  // measured, as all of these
};

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
inline void prefetch_second(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }  // into the second-level cache
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec load_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline Vec load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline void store_f16(uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
// Lanes [begin, end) are other's.
inline Vec replace(Vec a, Vec other, int begin, int end) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane), within = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane);
  return {_mm256_blendv_ps(a.v, other.v, _mm256_castsi256_ps(_mm256_andnot_si256(before, within)))};
}
inline float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
inline Vec round_nearest(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec exp2_integer(Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}

// ---- integers

struct IntVec {
  __m256i v;
};

inline Vec as_float(IntVec a) { return {_mm256_castsi256_ps(a.v)}; }  // of the same bits
inline Vec to_float(IntVec a) { return {_mm256_cvtepi32_ps(a.v)}; }

inline int32_t narrow_q8(const float* x, int8_t* q, int n, float inverse) {
  const __m256 scale = _mm256_set1_ps(inverse);
  __m256i totals = _mm256_setzero_si256();
  int32_t total = 0;
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i wide = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
    totals = _mm256_add_epi32(totals, wide);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(q + i), _mm_packs_epi16(words, words));
  }
  for (; i < n; ++i) total += q[i] = static_cast<int8_t>(_mm_cvtss_si32(_mm_set_ss(x[i] * inverse)));
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(totals), _mm256_extracti128_si256(totals, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return total + _mm_cvtsi128_si32(half);
}

inline IntVec splat(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline IntVec load_bytes(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline IntVec low_nibbles(IntVec a) { return {_mm256_and_si256(a.v, _mm256_set1_epi8(15))}; }
inline IntVec high_nibbles(IntVec a) { return {_mm256_and_si256(_mm256_srli_epi16(a.v, 4), _mm256_set1_epi8(15))}; }
inline IntVec add32(IntVec a, IntVec b) { return {_mm256_add_epi32(a.v, b.v)}; }

#ifdef LLADA_VNNI

// vpdpbusd: four products of an unsigned and a signed byte added to int32, exactly. As an instruction and not as an intrinsic where
// that is possible: GCC 12 copies every accumulator around the loop, two moves for each vpdpbusd.
inline void add_dot(IntVec& sum, IntVec weight, IntVec quad) {
#ifdef _MSC_VER
  sum.v = _mm256_dpbusd_avx_epi32(sum.v, weight.v, quad.v);
#else
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.v) : "x"(weight.v), "x"(quad.v));
#endif
}

#else

inline IntVec add16(IntVec a, IntVec b) { return {_mm256_add_epi16(a.v, b.v)}; }
// Two products of an unsigned and a signed byte, added in int16.
inline IntVec pair_products(IntVec weight, IntVec quad) { return {_mm256_maddubs_epi16(weight.v, quad.v)}; }
// pairs += the products of two unsigned and two signed bytes, added in int16. As instructions: GCC 12 turns the sum around and spills.
inline void add_pair_products(IntVec& pairs, IntVec weight, IntVec quad) {
#ifdef _MSC_VER
  pairs = add16(pairs, pair_products(weight, quad));
#else
  IntVec products;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(pairs.v), "=&x"(products.v) : "x"(weight.v), "x"(quad.v));
#endif
}
inline IntVec widen_pairs(IntVec a) { return {_mm256_madd_epi16(a.v, _mm256_set1_epi16(1))}; }
inline IntVec centre(IntVec weight) { return {_mm256_xor_si256(weight.v, _mm256_set1_epi8(-128))}; }  // zero point 128 to signed bytes
inline IntVec magnitude(IntVec a) { return {_mm256_abs_epi8(a.v)}; }
// sums += four products of signed bytes, the weight given as itself and as its magnitude.
inline void add_signed_products(IntVec& sums, IntVec weight, IntVec size, IntVec quad) {
#ifdef _MSC_VER
  sums = add32(sums, widen_pairs(pair_products(size, {_mm256_sign_epi8(quad.v, weight.v)})));
#else
  const IntVec ones = {_mm256_set1_epi16(1)};
  IntVec products;
  __asm__("vpsignb %2, %4, %1\n\tvpmaddubsw %1, %3, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
          : "+x"(sums.v), "=&x"(products.v)
          : "x"(weight.v), "x"(size.v), "x"(quad.v), "x"(ones.v));
#endif
}

#endif

}  // namespace

#include "kernels/dot-inl.h"
