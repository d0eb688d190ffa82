// Dot4, Dot8 and WinogradDot: products of 8-bit activations with 4-bit and 8-bit weights, exact in int32, over the integer vectors of a
// vec_*.h of x86.
// Weights are [depth / 4][panel][4] bytes, so that a 32-bit lane is a channel.
#pragma once

#include <stddef.h>
#include <string.h>

#include "kernels/compiler.h"

namespace {

constexpr int kVectorBytes = Vec::kLanes * 4;

// Four bytes of x in every channel.
inline IntVec broadcast_bytes(const int8_t* p) {
  int32_t quad;
  memcpy(&quad, p, 4);
  return splat(quad);
}

#ifdef LLADA_VNNI

struct Dot {
  using Sum = IntVec;
  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int k = 0; k < depth; k += 4, w += kVectorBytes * Vectors) {
      fetch.template step<1>();
      IntVec weight[Vectors];
      for (int j = 0; j < Vectors; ++j) weight[j] = load_bytes(w + kVectorBytes * j);
      for (int r = 0; r < Rows; ++r) {
        const IntVec quad = broadcast_bytes(x + r * x_stride + k);
        for (int j = 0; j < Vectors; ++j) add_dot(sums[r][j], weight[j], quad);
      }
    }
  }
};

// The same of weights that are still two a byte, [depth / 8][panel][4]: what unpacking costs hides behind the products. With few rows
// the low and the high nibbles have chains of their own, or the latency of vpdpbusd would be waited for; integer sums are exact.
struct Dot4 : Dot {
  static constexpr bool kUnpacks = true, kStartsLast = false;
  template <int Rows, int Vectors, class Fetch>
  static void run_packed(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    constexpr bool kSplit = Rows <= 3;
    Sum high_sums[Rows][Vectors];
    for (int r = 0; r < Rows && kSplit; ++r)
      for (int j = 0; j < Vectors; ++j) high_sums[r][j] = splat(0);
    for (int k = 0; k < depth; k += 8, w += kVectorBytes * Vectors) {
      fetch.template step<1>();
      IntVec low[Vectors], high[Vectors];
      for (int j = 0; j < Vectors; ++j) {
        const IntVec pair = load_bytes(w + kVectorBytes * j);
        low[j] = low_nibbles(pair);
        high[j] = high_nibbles(pair);
      }
      for (int r = 0; r < Rows; ++r) {
        const IntVec quad = broadcast_bytes(x + r * x_stride + k), next = broadcast_bytes(x + r * x_stride + k + 4);
        for (int j = 0; j < Vectors; ++j) add_dot(sums[r][j], low[j], quad);
        for (int j = 0; j < Vectors; ++j) add_dot(kSplit ? high_sums[r][j] : sums[r][j], high[j], next);
      }
    }
    for (int r = 0; r < Rows && kSplit; ++r)
      for (int j = 0; j < Vectors; ++j) sums[r][j] = add32(sums[r][j], high_sums[r][j]);
  }
};

struct Dot8 : Dot {
  static Sum start(int32_t x_sum) { return splat(-128 * x_sum); }
};

#ifdef LLADA_WINOGRAD

// Winograd's inner product: see QuantizedTile.
struct WinogradDot {
  static constexpr bool kStartsLast = false;
  using Sum = IntVec;

  // One tile of rows unpacks the weights [depth / 8][panel][4]: into registers, and for the other tiles into memory.
  template <int Rows, int Vectors, class Fetch>
  static void run_first(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch,
                        uint8_t* unpacked, int32_t* w_starts) {
    Sum w_sums[Vectors];
    for (int j = 0; j < Vectors; ++j) w_sums[j] = splat(0);
    for (int k = 0; k < depth; k += 8, w += kVectorBytes * Vectors, unpacked += 2 * kVectorBytes * Vectors) {
      fetch.template step<1>();
      IntVec first[Vectors], second[Vectors];
      for (int j = 0; j < Vectors; ++j) {
        const IntVec both = load_bytes(w + kVectorBytes * j);
        first[j] = low_nibbles_plus_120(both);
        second[j] = high_nibbles_minus_8(both);
        store_bytes(unpacked + kVectorBytes * j, first[j]);
        store_bytes(unpacked + kVectorBytes * (Vectors + j), second[j]);
        add_dot(w_sums[j], first[j], second[j]);
      }
      add_products(x + k, x_stride, first, second, sums);
    }
    for (int j = 0; j < Vectors; ++j) {
      const IntVec start = sub32(splat(0), w_sums[j]);
      store32(w_starts + Vec::kLanes * j, start);
      for (int r = 0; r < Rows; ++r) sums[r][j] = add32(sums[r][j], start);
    }
  }

  // The other tiles: weights [depth / 8][2][panel][4].
  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int k = 0; k < depth; k += 8, w += 2 * kVectorBytes * Vectors) {
      fetch.template step<2>();
      IntVec first[Vectors], second[Vectors];
      for (int j = 0; j < Vectors; ++j) {
        first[j] = load_bytes(w + kVectorBytes * j);
        second[j] = load_bytes(w + kVectorBytes * (Vectors + j));
      }
      add_products(x + k, x_stride, first, second, sums);
    }
  }

 private:
  // Of eight depths: (x2 + (w1 + 128)) (x1 + w2).
  template <int Rows, int Vectors>
  static void add_products(const int8_t* x, ptrdiff_t x_stride, const IntVec (&first)[Vectors], const IntVec (&second)[Vectors],
                           Sum (&sums)[Rows][Vectors]) {
    for (int r = 0; r < Rows; ++r) {
      const IntVec quad = broadcast_bytes(x + r * x_stride), next = broadcast_bytes(x + r * x_stride + 4);
      for (int j = 0; j < Vectors; ++j) add_dot(sums[r][j], add8(next, first[j]), add8(quad, second[j]));
    }
  }
};

#endif

#else

// vpmaddubsw adds two products into int16. With 4-bit weights a pair is at most 2 * 15 * 120 = 3600, so eight pairs fit before
// vpmaddwd widens them.
struct Dot4 {
  static constexpr bool kUnpacks = true, kStartsLast = Tiling::kPairsStartLast;
  using Sum = IntVec;
  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int begin = 0; begin < depth; begin += 32) {
      fetch.template step<8>();
      IntVec pairs[Rows][Vectors];
LLADA_UNROLL(8)
      for (int i = 0; i < 8; ++i, w += kVectorBytes * Vectors) {
        IntVec weight[Vectors];
        for (int j = 0; j < Vectors; ++j) weight[j] = load_bytes(w + kVectorBytes * j);
        for (int r = 0; r < Rows; ++r) {
          const IntVec quad = broadcast_bytes(x + r * x_stride + begin + 4 * i);
          for (int j = 0; j < Vectors; ++j) {
            if (i == 0) {
              pairs[r][j] = pair_products(weight[j], quad);
            } else {
              add_pair_products(pairs[r][j], weight[j], quad);
            }
          }
        }
      }
      for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Vectors; ++j) sums[r][j] = add32(sums[r][j], widen_pairs(pairs[r][j]));
    }
  }
  template <int Rows, int Vectors, class Fetch>
  static void run_packed(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int begin = 0; begin < depth; begin += 32) {
      fetch.template step<4>();
      IntVec pairs[Rows][Vectors];
LLADA_UNROLL(4)
      for (int i = 0; i < 4; ++i, w += kVectorBytes * Vectors) {
        for (int j = 0; j < Vectors; ++j) {
          const IntVec both = load_bytes(w + kVectorBytes * j), low = low_nibbles(both), high = high_nibbles(both);
          for (int r = 0; r < Rows; ++r) {
            const int8_t* at = x + r * x_stride + begin + 8 * i;
            if (i == 0) {
              pairs[r][j] = pair_products(low, broadcast_bytes(at));
            } else {
              add_pair_products(pairs[r][j], low, broadcast_bytes(at));
            }
            add_pair_products(pairs[r][j], high, broadcast_bytes(at + 4));
          }
        }
      }
      for (int r = 0; r < Rows; ++r)
        for (int j = 0; j < Vectors; ++j) sums[r][j] = add32(sums[r][j], widen_pairs(pairs[r][j]));
    }
  }
};

// 8-bit weights as magnitude and sign, the sign moved to x: a pair is at most 2 * 127 * 127 = 32258, which int16 holds.
struct Dot8 {
  using Sum = IntVec;
  static Sum start(int32_t) { return splat(0); }
  template <int Rows, int Vectors, class Fetch>
  static void run(const int8_t* x, ptrdiff_t x_stride, const uint8_t* w, int depth, Sum (&sums)[Rows][Vectors], Fetch fetch) {
    for (int k = 0; k < depth; k += 4, w += kVectorBytes * Vectors) {
      fetch.template step<1>();
      for (int j = 0; j < Vectors; ++j) {
        const IntVec weight = centre(load_bytes(w + kVectorBytes * j)), size = magnitude(weight);
        for (int r = 0; r < Rows; ++r) add_signed_products(sums[r][j], weight, size, broadcast_bytes(x + r * x_stride + k));
      }
    }
  }
};

#endif

}  // namespace
