// Sixteen floats in a ZMM register: AVX-512 F, CD, BW, DQ, VL.
#pragma once

#include <immintrin.h>

namespace {

struct Vec {
  static constexpr int kLanes = 16;
  __m512 v;
};

struct Tiling {
  static constexpr int kVectors = 2;
  static constexpr int kRows = 12;  // 12 x 2 accumulators and two weights of 32 registers; broadcasts are memory operands
  static constexpr int kIntRows = 6;  // 6 x 2 integer and 6 x 2 float accumulators and two weights; broadcasts are memory operands
#ifdef LLADA_VNNI
  static constexpr bool kTotalsInMemory = false;
  static constexpr int kPackedRows = 1 << 30;  // unpacking is done on execution ports that vpdpbusd leaves free
  static constexpr int kWinogradRows = 8;      // 8 x 2 sums, four weights, two broadcasts and two additions; float totals wait in memory
#else
  static constexpr bool kTotalsInMemory = true;  // measured, as the others are: beside 4-bit weights that are unpacked in registers
  static constexpr bool kPairsStartLast = false;
  static constexpr int kPackedRows = 12;
#endif
};

inline void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
inline void prefetch_second(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }  // into the second-level cache
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline Vec load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline void store_f16(uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
// Lanes [begin, end) are other's.
inline Vec replace(Vec a, Vec other, int begin, int end) {
  const uint32_t lanes = ((1u << (end - begin)) - 1) << begin;
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(lanes), a.v, other.v)};
}
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline Vec round_nearest(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec exp2_integer(Vec n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}

// ---- integers

struct IntVec {
  __m512i v;
};

inline Vec as_float(IntVec a) { return {_mm512_castsi512_ps(a.v)}; }  // of the same bits
inline Vec to_float(IntVec a) { return {_mm512_cvtepi32_ps(a.v)}; }

inline int32_t narrow_q8(const float* x, int8_t* q, int n, float inverse) {
  const __m512 scale = _mm512_set1_ps(inverse);
  __m512i totals = _mm512_setzero_si512();
  int i = 0;
  for (; i + 16 <= n; i += 16) {  // stores of a register: those under a mask take tens of cycles on Zen 4
    const __m512i wide = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale));
    totals = _mm512_add_epi32(totals, wide);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtsepi32_epi8(wide));
  }
  if (i < n) {
    const __mmask16 live = static_cast<__mmask16>((1u << (n - i)) - 1);
    const __m512i wide = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(live, x + i), scale));
    totals = _mm512_add_epi32(totals, wide);
    _mm512_mask_cvtsepi32_storeu_epi8(q + i, live, wide);
  }
  return _mm512_reduce_add_epi32(totals);
}

inline IntVec splat(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline IntVec load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline IntVec low_nibbles(IntVec a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline IntVec high_nibbles(IntVec a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
inline IntVec add32(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }

#ifdef LLADA_WINOGRAD

// Additions to nibbles that are rearrangements of their bits: the three lowest stay, and the others are the fourth or its complement. So
// vgf2p8affineqb, which makes every bit of a byte the parity of chosen bits, then complements, does what takes two or three instructions.
// Not an intrinsic: that wants a build for GFNI, and the rest of this one is for processors without it too.
template <int Complement>
inline IntVec chosen_bits(IntVec a, long long rows) {
#ifdef _MSC_VER
  return {_mm512_gf2p8affine_epi64_epi8(a.v, _mm512_set1_epi64(rows), Complement)};
#else
  IntVec out;
  __asm__("vgf2p8affineqb %3, %2, %1, %0" : "=v"(out.v) : "v"(a.v), "v"(_mm512_set1_epi64(rows)), "i"(Complement));
  return out;
#endif
}
inline IntVec low_nibbles_plus_120(IntVec a) { return chosen_bits<0x78>(a, 0x0102040808080808); }
inline IntVec high_nibbles_minus_8(IntVec a) { return chosen_bits<0xf8>(a, 0x1020408080808080); }

inline IntVec add8(IntVec a, IntVec b) { return {_mm512_add_epi8(a.v, b.v)}; }
inline IntVec sub32(IntVec a, IntVec b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline IntVec load32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(uint8_t* p, IntVec a) { _mm512_storeu_si512(p, a.v); }
inline void store32(int32_t* p, IntVec a) { _mm512_storeu_si512(p, a.v); }

// Sum of x1 (x2 + 128), n a multiple of 32: moved up in its eight bytes, x1 stands beside x2, and nothing beside x1.
inline int32_t winograd_sum(const int8_t* x, int n) {
  __m256i sums = _mm256_setzero_si256();
  for (int i = 0; i < n; i += 32) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    sums = _mm256_dpbusd_epi32(sums, _mm256_xor_si256(both, _mm256_set1_epi8(-128)), _mm256_slli_epi64(both, 32));
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_extract_epi32(half, 1) + _mm_cvtsi128_si32(half);
}

#endif

#ifdef LLADA_BF16

// vdpbf16ps: the product of the upper halves added to a float32, then that of the lower halves.
inline Vec add_bf16_products(Vec sum, IntVec a, IntVec b) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)}; }

#endif

#ifdef LLADA_VNNI

// vpdpbusd: four products of an unsigned and a signed byte added to int32, exactly. As an instruction and not as an intrinsic where
// that is possible: GCC 12 copies every accumulator around the loop, two moves for each vpdpbusd (631 against 864 GOP/s).
inline void add_dot(IntVec& sum, IntVec weight, IntVec quad) {
#ifdef _MSC_VER
  sum.v = _mm512_dpbusd_epi32(sum.v, weight.v, quad.v);
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(weight.v), "v"(quad.v));
#endif
}

#else

inline IntVec add16(IntVec a, IntVec b) { return {_mm512_add_epi16(a.v, b.v)}; }
// Two products of an unsigned and a signed byte, added in int16.
inline IntVec pair_products(IntVec weight, IntVec quad) { return {_mm512_maddubs_epi16(weight.v, quad.v)}; }
// pairs += the products of two unsigned and two signed bytes, added in int16. As instructions: GCC 12 turns the sum around and spills.
inline void add_pair_products(IntVec& pairs, IntVec weight, IntVec quad) {
#ifdef _MSC_VER
  pairs = add16(pairs, pair_products(weight, quad));
#else
  IntVec products;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+v"(pairs.v), "=&v"(products.v) : "v"(weight.v), "v"(quad.v));
#endif
}
inline IntVec widen_pairs(IntVec a) { return {_mm512_madd_epi16(a.v, _mm512_set1_epi16(1))}; }
inline IntVec centre(IntVec weight) { return {_mm512_xor_si512(weight.v, _mm512_set1_epi8(-128))}; }  // zero point 128 to signed bytes
inline IntVec magnitude(IntVec a) { return {_mm512_abs_epi8(a.v)}; }
// sums += four products of signed bytes, the weight given as itself and as its magnitude.
inline void add_signed_products(IntVec& sums, IntVec weight, IntVec size, IntVec quad) {
  const IntVec turned = {_mm512_mask_sub_epi8(quad.v, _mm512_movepi8_mask(weight.v), _mm512_setzero_si512(), quad.v)};
  sums = add32(sums, widen_pairs(pair_products(size, turned)));
}

#endif

}  // namespace

#include "kernels/dot-inl.h"
