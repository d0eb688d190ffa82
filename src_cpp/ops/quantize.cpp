#include "ops/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "ops/convert.h"

namespace llada {

namespace {

constexpr float kSmallestF16 = 0x1p-24f;        // and below kSmallestNormalF16 the step between two of them
constexpr float kSmallestNormalF16 = 0x1p-14f;

// Round to nearest for |x| < 2^22.
inline float round_nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

struct Fit {
  double wq;  // sum of w q
  double qq;  // sum of q q

  // What a scale leaves of sum w^2 less than nothing does: sum (w - s q)^2 = sum w^2 - s (2 wq - s qq).
  double explained(double scale) const { return scale * (2 * wq - scale * qq); }
};

// The integer of a weight, as a float.
inline float integer(float w, float inverse, float lowest, float highest) {
  const float v = round_nearest(w * inverse), raised = v < lowest ? lowest : v;
  return raised > highest ? highest : raised;
}

// How well w lies along the integers that a scale gives.
Fit fit(const float* w, int count, float inverse, float lowest, float highest) {
  float wq[kSumLanes] = {}, qq[kSumLanes] = {};
  for (int i = 0; i < count; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) {
      const float v = integer(w[i + j], inverse, lowest, highest);
      wq[j] += w[i + j] * v;
      qq[j] += v * v;
    }
  }
  Fit total{0, 0};
  for (int j = 0; j < kSumLanes; ++j) total.wq += wq[j], total.qq += qq[j];
  return total;
}

// The weight of the largest magnitude, the first of several; NaN when one is not finite. Magnitudes are compared as integers, whose order
// is that of the numbers, and which compilers put into vectors.
float extreme_of(const float* w, int count) {
  constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
  const auto magnitude = [](float v) { return static_cast<int32_t>(float_to_bits(v)) & kMagnitude; };
  int32_t largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, magnitude(w[i]));
  if (largest >= kInfinity) return std::numeric_limits<float>::quiet_NaN();
  return *std::find_if(w, w + count, [&](float v) { return magnitude(v) == largest; });
}

}  // namespace

float quantize_group(const KernelTable& kernels, const float* w, int count, DType dtype, uint8_t* codes) {
  const int zero = zero_point(dtype), padded_count = static_cast<int>(round_up(count, kSumLanes));
  float padded[kMaxGroup] = {};
  std::memcpy(padded, w, static_cast<size_t>(count) * sizeof(float));
  std::memset(codes, zero, static_cast<size_t>(count));
  const float extreme = extreme_of(padded, count);
  if (std::isnan(extreme)) return extreme;
  const bool four = dtype == DType::int4;
  const float lowest = four ? -8.0f : -127.0f, highest = four ? 7.0f : 127.0f;
  if (std::fabs(extreme) > -lowest * kLargestF16) throw_beyond(four ? "int4" : "int8", -lowest * kLargestF16, extreme);
  if (std::fabs(extreme) < kSmallestF16 / 2) return 0.0f;  // nearer to zero than to any other multiple of a scale

  double best = 0;
  float scale = 0.0f, inverse_of_best = 0.0f;  // the one that made the integers
  const auto consider = [&](float candidate, float inverse, const Fit& f) {
    const double explained = f.explained(candidate);
    if (explained <= best) return;
    best = explained;
    scale = candidate;
    inverse_of_best = inverse;
  };
  const auto consider_fitted = [&](float inverse, const Fit& f) {
    // What any scale of these integers explains is at most wq^2 / qq: most of them need no scale.
    constexpr double kRounding = 1 + 1e-12;
    if (std::fabs(f.wq) > 2 * kSmallestNormalF16 * f.qq && f.wq * f.wq * kRounding <= best * f.qq) return;
    const float fitted = static_cast<float>(f.wq / f.qq);
    if (std::fabs(fitted) >= kSmallestNormalF16) {
      consider(f16_to_float(float_to_f16(std::clamp(fitted, -kLargestF16, kLargestF16))), inverse, f);
      return;
    }
    // Here float16 has few digits: the scales on both sides, with integers of their own.
    const float below = std::floor(std::fabs(fitted) / kSmallestF16) * kSmallestF16;
    for (const float size : {below, below + kSmallestF16}) {
      if (size == 0) continue;
      const float candidate = std::copysign(size, fitted);
      consider(candidate, 1 / candidate, fit(padded, padded_count, 1 / candidate, lowest, highest));
    }
  };
  if (four) {
    // They reach from -8 to 7: the extreme weight goes to the far end, whatever its sign, or a little within or beyond it.
    float inverses[kScaleCandidates], w_q[kSumLanes][kScaleCandidates], q_q[kSumLanes][kScaleCandidates];
    double wq[kScaleCandidates] = {}, qq[kScaleCandidates] = {};
    for (int c = 0; c < kScaleCandidates; ++c) inverses[c] = (-9.0f + 0.25f * static_cast<float>(c)) / extreme;
    kernels.scale_sums(padded, padded_count, inverses, lowest, highest, w_q[0], q_q[0]);
    for (int j = 0; j < kSumLanes; ++j)
      for (int c = 0; c < kScaleCandidates; ++c) wq[c] += w_q[j][c], qq[c] += q_q[j][c];
    for (int c = 0; c < kScaleCandidates; ++c) consider_fitted(inverses[c], {wq[c], qq[c]});
  } else {  // 8 bits are fine enough for the plain scale
    consider_fitted(highest / extreme, fit(padded, padded_count, highest / extreme, lowest, highest));
  }
  for (int i = 0; i < count; ++i)
    codes[i] = static_cast<uint8_t>(static_cast<int>(integer(padded[i], inverse_of_best, lowest, highest)) + zero);
  return scale;
}

void QuantizedRows::convert(Team& team, const KernelTable& kernels, Rows x, int64_t rows, int64_t width, const WeightFormat& format) {
  if (format.quantized()) quantize(team, kernels, x, rows, width, format);
  if (format.rounds()) round(team, kernels, x, rows, width, 1);
  if (splits(kernels, format)) round(team, kernels, x, rows, width, kSplitParts);
}

void QuantizedRows::fit(int64_t rows, int64_t row_bytes, int64_t groups, bool winograd) {
  stride_ = static_cast<ptrdiff_t>(round_up(row_bytes, 128) + 64);  // odd in cache lines, as row_stride
  rows_ = static_cast<ptrdiff_t>(rows);
  groups_ = static_cast<ptrdiff_t>(groups);
  group_stride_ = static_cast<ptrdiff_t>(round_up(rows, 32) + 16);  // odd in cache lines, too: all groups of a tile are read in turn
  winograd_ = winograd;
  // Each by its own size: of two that an allocation failed between, one would be taken for the other's.
  const auto grow = [](auto& array, int64_t size) {
    if (size > array.size()) array = std::decay_t<decltype(array)>(size);
  };
  grow(codes_, rows * stride_);
  const int64_t scales = groups * group_stride_;
  grow(scales_, scales);
  grow(sums_, scales);
  if (winograd) grow(winograd_starts_, scales);
}

void QuantizedRows::spread(Team& team, const QuantizedRows& others, const int32_t* slots, int64_t copies) {
  fit(others.rows_ * copies, others.stride_ - 64, others.groups_, others.winograd_);
  team.split(others.rows_, 1 + 131072 / (others.stride_ * copies), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * copies; i < end * copies; ++i) {
      const int64_t from = i / copies, to = slots[i];
      std::memcpy(codes_.data() + to * stride_, others.row(from), static_cast<size_t>(stride_));
      for (int64_t g = 0; g < groups_; ++g) {
        scales_[g * group_stride_ + to] = others.scales(g)[from];
        sums_[g * group_stride_ + to] = others.sums(g)[from];
        if (winograd_) winograd_starts_[g * group_stride_ + to] = others.winograd_starts(g)[from];
      }
    }
  });
}

// To so many bfloat16 numbers each: one that is near, or those that it is the sum of.
void QuantizedRows::round(Team& team, const KernelTable& kernels, Rows x, int64_t rows, int64_t width, int parts) {
  const int64_t stored = plane(kernels, width);
  const int n = static_cast<int>(width);
  fit(rows, kernels.gemm_bf16 ? stored * 2 * parts : width * 4, 0, false);
  team.split(rows, 1 + 32768 / width, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      int8_t* out = codes_.data() + r * stride_;
      if (!kernels.gemm_bf16) {
        kernels.round_bf16(x.row(r), reinterpret_cast<float*>(out), n);
        continue;
      }
      uint16_t* pairs = reinterpret_cast<uint16_t*>(out);
      if (stored > width) std::memset(pairs, 0, static_cast<size_t>(stored * parts) * sizeof(uint16_t));
      if (parts > 1) kernels.split_pairs(x.row(r), pairs, stored, n);
      else kernels.round_pairs(x.row(r), pairs, n);
    }
  });
}

void QuantizedRows::quantize(Team& team, const KernelTable& kernels, Rows x, int64_t rows, int64_t width, const WeightFormat& format) {
  const int64_t whole = round_up(width, format.group);
  const bool four = format.dtype == DType::int4;
  fit(rows, whole, whole / format.group, four && kernels.gemm_winograd_u4);
  team.split(rows, 1 + 32768 / width, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      int8_t* codes = codes_.data() + r * stride_;
      float* scales = scales_.data() + r;
      int32_t* sums = sums_.data() + r;
      if (four) {
        kernels.quantize_q8_for_u4(x.row(r), codes, scales, sums, winograd_ ? winograd_starts_.data() + r : nullptr, group_stride_,
                                   static_cast<int>(width), format.group);
      } else {
        kernels.quantize_q8(x.row(r), codes, scales, sums, group_stride_, static_cast<int>(width), format.group);
      }
    }
  });
}

}  // namespace llada
