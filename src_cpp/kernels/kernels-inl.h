// The kernels, written once over Vec and Tiling. A per-ISA file includes its vec_*.h and then this header.
//
// ODR contract: this header is compiled under several flag sets into one library, so everything in it has internal linkage and it
// uses no inline function or template from outside the anonymous namespace but intrinsics and C functions.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/compiler.h"
#include "kernels/table.h"

namespace {

constexpr ptrdiff_t kLine = 64;  // bytes of a cache line

using llada::Ahead;
using llada::AttentionTile;
using llada::FloatTile;
using llada::kDepthBlock;
using llada::kKeyBlock;
using llada::kMaxHeadDim;
using llada::kMaxPanel;

constexpr int kPanel = Tiling::kVectors * Vec::kLanes;
static_assert(kPanel <= kMaxPanel && kKeyBlock % kPanel == 0 && kMaxHeadDim % kPanel == 0, "panel does not fit the tiling");

// ---- matrix product

struct FloatProduct {
  using Element = float;
  static constexpr int kDepth = 1;  // depths at a time
  static Vec weights(const float* w) { return load(w); }
  static Vec factors(const float* a) { return broadcast(*a); }
  static Vec add_product(Vec sum, Vec weights, Vec factors) { return fma(factors, weights, sum); }
};

// The lines of a tile's results, while it is computed: rows of a large result lie on pages of their own, and at first are in no cache.
template <int Rows>
void fetch_results(const float* c, ptrdiff_t c_stride) {
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < kPanel; j += kLine / 4) prefetch(reinterpret_cast<const char*>(c + r * c_stride + j));
}

// Rows x one panel. Every accumulator is one chain over the depth, so a row's bits do not depend on Rows.
template <class Product, int Rows>
void gemm_tile(const llada::GemmTile<typename Product::Element>& t, int first, Ahead ahead) {
  constexpr int kVectors = Tiling::kVectors, kDepth = Product::kDepth;
  // Copies: what is stored below could be a part of t, as far as a compiler knows.
  const ptrdiff_t a_stride = t.a_stride, w_stride = t.w_stride, c_stride = t.c_stride;
  const bool accumulate = t.accumulate != 0;
  const int depth = t.depth;
  const auto* w = t.w;
  // A pointer for three rows, which x86 addresses with one stride and twice that. With one for all rows GCC 12 keeps the distance of each,
  // more than there are registers, and moves some of them at every depth.
  const typename Product::Element* a[(Rows + 2) / 3];
  for (int i = 0; i < (Rows + 2) / 3; ++i) {
    a[i] = t.a + (first + i * 3) * a_stride;
    LLADA_FORGET(a[i]);
  }
  float* c = t.c + first * c_stride;
  fetch_results<Rows>(c, c_stride);
  // While a loop over acc is left, GCC 12 keeps it in memory there; on aarch64, of four vectors a row, at every depth too.
  Vec acc[Rows][kVectors];
LLADA_UNROLL(12)
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < kVectors; ++j) acc[r][j] = zero();
  // Without anything ahead it is w, which is there: an unmapped address would be looked up each time.
  const char* next = ahead.bytes > 0 ? ahead.data : reinterpret_cast<const char*>(w);
  const ptrdiff_t step = ahead.bytes > 0 ? ahead.bytes / (depth / kDepth) : 0;
  for (int k = 0; k < depth; k += kDepth, w += w_stride, next += step) {
    prefetch(next);
    if (step > kLine) prefetch(next + kLine);
    decltype(Product::weights(w)) weights[kVectors];
    for (int j = 0; j < kVectors; ++j) weights[j] = Product::weights(w + j * Vec::kLanes * kDepth);
LLADA_UNROLL(12)
    for (int r = 0; r < Rows; ++r) {
      const auto x = Product::factors(a[r / 3] + r % 3 * a_stride);
      for (int j = 0; j < kVectors; ++j) acc[r][j] = Product::add_product(acc[r][j], weights[j], x);
    }
    for (auto& rows : a) rows += kDepth;
  }
  LLADA_FORGET(c);  // or the addresses of all results are kept from fetch_results on
  if (accumulate) {
LLADA_UNROLL(12)
    for (int r = 0; r < Rows; ++r)
      for (int j = 0; j < kVectors; ++j) acc[r][j] = add(load(c + r * c_stride + j * Vec::kLanes), acc[r][j]);
  }
LLADA_UNROLL(12)
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < kVectors; ++j) store(c + r * c_stride + j * Vec::kLanes, acc[r][j]);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

template <int Most>
struct RowTile {
  template <class F>
  static void call(const F& f, int first, int rows) {
    if (rows == Most) {
      f(Count<Most>(), first);
    } else {
      RowTile<Most - 1>::call(f, first, rows);
    }
  }
};

template <>
struct RowTile<0> {
  template <class F>
  static void call(const F&, int, int) {}
};

// f(Count<n>, first row) for the fewest tiles of at most Most rows, equal within one: a short last tile could not fill the latency of
// its sums. The shorter ones come first, so that one that reads as many rows as the longer ones finds them.
template <int Most, class F>
void for_each_row_tile(int rows, const Ahead& ahead, const F& f) {
  const int tiles = (rows + Most - 1) / Most;
  if (tiles == 0) return;
  const int least = rows / tiles, longer = rows % tiles;
  const ptrdiff_t share = ahead.bytes / tiles;
  for (int t = 0, first = 0; t < tiles; ++t) {
    const int count = least + (t >= tiles - longer);
    const Ahead own = {ahead.data + share * t, t + 1 < tiles ? share : ahead.bytes - share * t, t == 0 ? ahead.scales : nullptr};
    RowTile<Most>::call([&](auto n, int at) { f(n, at, own); }, first, count);
    first += count;
  }
}

template <class Product>
void gemm(const llada::GemmTile<typename Product::Element>& tile) {
  for_each_row_tile<Tiling::kRows>(tile.rows, tile.ahead, [&](auto count, int first, const Ahead& ahead) {
    gemm_tile<Product, count.value>(tile, first, ahead);
  });
}

void gemm_f32(const FloatTile& tile) { gemm<FloatProduct>(tile); }

int64_t multiply_add(int64_t rounds, float* sink) {
#ifdef __aarch64__
  constexpr int kChains = 16;  // the latency of a multiply-add is 4 cycles, up to four start in each
#else
  constexpr int kChains = 10;  // the latency of a multiply-add is 4 or 5 cycles, two start in each
#endif
  Vec acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = load(sink);
  const Vec factor = load(sink);
  for (int64_t n = 0; n < rounds; ++n) {
#ifdef __aarch64__  // fmla overwrites the addend: factor would be copied for each
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], factor, acc[i]);
#else
    for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], factor, factor);
#endif
  }
#ifdef __aarch64__  // as in gemm_tile
LLADA_UNROLL(16)
#endif
  for (int i = 1; i < kChains; ++i) acc[0] = add(acc[0], acc[i]);
  store(sink, acc[0]);
  return rounds * kChains * Vec::kLanes * 2;
}

template <class Load>
void widen(const uint16_t* x, float* out, size_t n, Load load_half) {
  size_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) store(out + i, load_half(x + i));
  if (i == n) return;
  uint16_t tail[Vec::kLanes] = {};
  float wide[Vec::kLanes];
  for (size_t j = i; j < n; ++j) tail[j - i] = x[j];
  store(wide, load_half(tail));
  for (size_t j = i; j < n; ++j) out[j] = wide[j - i];
}

void widen_bf16(const uint16_t* x, float* out, size_t n) {
  widen(x, out, n, [](const uint16_t* p) { return load_bf16(p); });
}

void widen_f16(const uint16_t* x, float* out, size_t n) {
  widen(x, out, n, [](const uint16_t* p) { return load_f16(p); });
}

void narrow_f16(const float* x, uint16_t* out, size_t n) {
  size_t i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) store_f16(out + i, load(x + i));
  if (i == n) return;
  float tail[Vec::kLanes] = {};
  uint16_t narrow[Vec::kLanes];
  for (size_t j = i; j < n; ++j) tail[j - i] = x[j];
  store_f16(narrow, load(tail));
  for (size_t j = i; j < n; ++j) out[j] = narrow[j - i];
}

// ---- elementwise

// e^x with a relative error below 2.5e-7 on [-87.3, 88.3]; arguments outside are clamped to it, NaN gives the lower end.
// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 split in two so that n ln 2 is exact (Cody & Waite, 1980), e^r by the degree-7 Taylor
// polynomial, whose remainder is (ln 2 / 2)^8 / 8! < 6e-9.
Vec exponential(Vec x) {
  x = min(max(x, broadcast(-87.3f)), broadcast(88.3f));
  const Vec n = round_nearest(mul(x, broadcast(1.44269504f)));
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return mul(p, exp2_integer(n));
}

// Applies f to n elements, whole vectors first and the tail through a zero-padded copy: one code path for every element.
template <class F>
void for_each_vector(float* x, const float* y, int n, F f) {
  int i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes) store(x + i, f(load(x + i), load(y + i)));
  if (i == n) return;
  float a[Vec::kLanes] = {}, b[Vec::kLanes] = {};
  for (int j = i; j < n; ++j) a[j - i] = x[j], b[j - i] = y[j];
  store(a, f(load(a), load(b)));
  for (int j = i; j < n; ++j) x[j] = a[j - i];
}

void silu_mul_f32(float* gate, const float* up, int n) {
  for_each_vector(gate, up, n, [](Vec g, Vec u) {
    const Vec e = exponential(sub(zero(), g));
    return mul(div(g, add(broadcast(1.0f), e)), u);
  });
}

void rms_norm_f32(const float* x, const float* weight, float* out, int n, float eps) {
  constexpr int kChains = 4;  // independent sums, to hide the latency of fma
  Vec squares[kChains];
  for (int j = 0; j < kChains; ++j) squares[j] = zero();
  int i = 0;
  for (; i + kChains * Vec::kLanes <= n; i += kChains * Vec::kLanes) {
    for (int j = 0; j < kChains; ++j) {
      const Vec v = load(x + i + j * Vec::kLanes);
      squares[j] = fma(v, v, squares[j]);
    }
  }
  float total = sum(add(add(squares[0], squares[1]), add(squares[2], squares[3])));
  for (; i < n; ++i) total += x[i] * x[i];
  const float inverse = 1.0f / sqrtf(total / static_cast<float>(n) + eps);
  i = 0;
  for (; i + Vec::kLanes <= n; i += Vec::kLanes)
    store(out + i, mul(mul(load(x + i), broadcast(inverse)), load(weight + i)));
  for (; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

void rope_f32(float* x, const float* cos, const float* sin, int half) {
  int i = 0;
  for (; i + Vec::kLanes <= half; i += Vec::kLanes) {
    const Vec c = load(cos + i), s = load(sin + i), low = load(x + i), high = load(x + half + i);
    store(x + i, sub(mul(low, c), mul(high, s)));
    store(x + half + i, add(mul(high, c), mul(low, s)));
  }
  for (; i < half; ++i) {
    const float low = x[i], high = x[half + i];
    x[i] = low * cos[i] - high * sin[i];
    x[half + i] = high * cos[i] + low * sin[i];
  }
}

// ---- attention

constexpr int kAttentionRows = Tiling::kRows * 2;
static_assert(kAttentionRows <= llada::kMaxAttentionRows, "attention has room for the rows of a tile");

// The key of a block, counted from its begin, that a row does not see; negative when it sees all of them.
int hidden_key(const AttentionTile& tile, int row, int begin, int keys) {
  const int key = tile.hidden ? tile.hidden[row] - begin : -1;
  return key < keys ? key : -1;
}

// weighted[rows, width] = or += weights[rows, keys] . v[keys, width]
void add_values(const float* weights, const float* v, float* weighted, int rows, int keys, int width, bool accumulate) {
  for (int j = 0; j < width; j += kPanel)
    gemm_f32({weights, kKeyBlock, v + j, width, weighted + j, width, rows, keys, accumulate, {}});
}

// f(k, seen) for the vectors of a row's keys of a block; seen(values, other) has `other` where the row sees no key: behind the last one,
// and at the hidden one.
template <class F>
void for_each_key_vector(int keys, int hidden, const F& f) {
  int k = 0;
  if (hidden < 0)
    for (; k + Vec::kLanes <= keys; k += Vec::kLanes) f(k, [](Vec values, Vec) { return values; });
  for (; k < keys; k += Vec::kLanes) {
    f(k, [&](Vec values, Vec other) {
      if (k + Vec::kLanes > keys) values = replace(values, other, keys - k, Vec::kLanes);
      if (hidden >= k && hidden < k + Vec::kLanes) values = replace(values, other, hidden - k, hidden - k + 1);
      return values;
    });
  }
}

void attention_f32(const AttentionTile& tile) {
  const int dim = tile.head_dim, width = (dim + kPanel - 1) / kPanel * kPanel;
  float scores[kAttentionRows * kKeyBlock];     // [rows][keys of the block], then their exponentials
  float weighted[kAttentionRows * kMaxHeadDim]; // [rows][width]: sum over keys so far of exp(score - maximum) * v
  float maximum[kAttentionRows], block_maximum[kAttentionRows], total[kAttentionRows];
  for (int r = 0; r < tile.rows; ++r) {
    maximum[r] = -INFINITY;
    total[r] = 0.0f;
  }
  for (int begin = 0; begin < tile.keys; begin += kKeyBlock) {
    const int keys = tile.keys - begin < kKeyBlock ? tile.keys - begin : kKeyBlock;
    for (int k = 0; k < keys; k += kPanel)
      gemm_f32({tile.q, tile.q_stride, tile.k + static_cast<ptrdiff_t>(begin + k) * dim, kPanel, scores + k, kKeyBlock, tile.rows, dim,
                0, {}});
    bool hides = false;  // some row a key of this block
    Vec block_total[kAttentionRows];  // NaN when a score is NaN or infinite, which the maximum and exponential() lose
    // Loops over rows, each so short that the processor computes several rows at a time.
    for (int r = 0; r < tile.rows; ++r) {
      const int hidden = hidden_key(tile, r, begin, keys);
      hides = hides || hidden >= 0;
      float* s = scores + r * kKeyBlock;
      Vec most = broadcast(-INFINITY), bad = zero();
      for_each_key_vector(keys, hidden, [&](int k, const auto& seen) {
        const Vec score = load(s + k), scaled = seen(mul(score, broadcast(tile.scale)), broadcast(-INFINITY));
        bad = fma(seen(score, zero()), zero(), bad);
        store(s + k, scaled);
        most = max(most, scaled);
      });
      block_total[r] = bad;
      block_maximum[r] = largest(most);
    }
    for (int r = 0; r < tile.rows; ++r) {
      // Of two or more keys the first block holds another than the hidden one: where a block is that alone, there is a maximum already.
      if (!(block_maximum[r] > maximum[r])) continue;
      if (begin > 0) {
        const Vec shrink = exponential(broadcast(maximum[r] - block_maximum[r]));
        float* o = weighted + r * width;
        for (int j = 0; j < width; j += Vec::kLanes) store(o + j, mul(load(o + j), shrink));
        total[r] *= largest(shrink);
      }
      maximum[r] = block_maximum[r];
    }
    for (int r = 0; r < tile.rows; ++r) {
      const int hidden = hidden_key(tile, r, begin, keys);
      float* s = scores + r * kKeyBlock;
      Vec sums = block_total[r];
      for_each_key_vector(keys, hidden, [&](int k, const auto& seen) {
        // exponential() clamps: of -inf it would leave a tiny weight.
        const Vec weight = seen(exponential(sub(load(s + k), broadcast(maximum[r]))), zero());
        store(s + k, weight);
        sums = add(sums, weight);
      });
      total[r] += sum(sums);
    }
    const float* v = tile.v + static_cast<ptrdiff_t>(begin) * width;
    if (!hides) add_values(scores, v, weighted, tile.rows, keys, width, begin > 0);
    for (int r = 0; hides && r < tile.rows; ++r) {  // each around its hidden key: 0 times an infinite value is NaN
      const float* s = scores + r * kKeyBlock;
      const int hidden = hidden_key(tile, r, begin, keys), before = hidden < 0 ? keys : hidden, after = before + 1;
      float* o = weighted + r * width;
      if (before > 0) add_values(s, v, o, 1, before, width, begin > 0);
      if (after < keys) add_values(s + after, v + after * width, o, 1, keys - after, width, begin > 0 || before > 0);
    }
  }
  for (int r = 0; r < tile.rows; ++r) {
    const float inverse = 1.0f / total[r];
    const float* o = weighted + r * width;
    float* out = tile.out + r * tile.out_stride;
    int j = 0;
    for (; j + Vec::kLanes <= dim; j += Vec::kLanes) store(out + j, mul(load(o + j), broadcast(inverse)));
    for (; j < dim; ++j) out[j] = o[j] * inverse;
  }
}

}  // namespace
