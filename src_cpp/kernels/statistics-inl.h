// What the sampler asks of a row of logits, in float64. Plain loops over lanes, which the compiler turns into the vectors of each build: no
// sum depends on their width, so all builds give the same bits. Included by quantized-inl.h; the same ODR contract.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/table.h"

namespace {

using llada::Extremes;

constexpr int kStatisticLanes = 16;

// Calls f with every kStatisticLanes logits; the last ones are filled up with -inf, which counts for nothing.
template <class F>
void for_each_lanes(const float* x, int n, const F& f) {
  int i = 0;
  for (; i + kStatisticLanes <= n; i += kStatisticLanes) f(x + i);
  if (i == n) return;
  float tail[kStatisticLanes];
  for (int j = 0; j < kStatisticLanes; ++j) tail[j] = i + j < n ? x[i + j] : -INFINITY;
  f(tail);
}

void extremes(const float* x, int n, Extremes* out) {
  float most[kStatisticLanes], second[kStatisticLanes];
  int32_t nan[kStatisticLanes] = {};
  for (int j = 0; j < kStatisticLanes; ++j) most[j] = second[j] = -INFINITY;
  for_each_lanes(x, n, [&](const float* v) {
    for (int j = 0; j < kStatisticLanes; ++j) {
      const float less = v[j] < most[j] ? v[j] : most[j];
      second[j] = less > second[j] ? less : second[j];
      most[j] = v[j] > most[j] ? v[j] : most[j];
      nan[j] |= v[j] != v[j];
    }
  });
  Extremes found = {-INFINITY, -INFINITY, -1, 0};
  for (int j = 0; j < kStatisticLanes; ++j) {
    const float less = most[j] < found.most ? most[j] : found.most;
    found.second = less > found.second ? less : found.second;
    found.second = second[j] > found.second ? second[j] : found.second;
    found.most = most[j] > found.most ? most[j] : found.most;
    found.nan |= nan[j];
  }
  for (int i = 0; found.most > -INFINITY && found.index < 0; i += kStatisticLanes) {
    const int count = n - i < kStatisticLanes ? n - i : kStatisticLanes;
    int32_t here = 0;
    if (count == kStatisticLanes)
      for (int j = 0; j < kStatisticLanes; ++j) here |= x[i + j] == found.most;
    if (!here && count == kStatisticLanes) continue;
    for (int j = count - 1; j >= 0; --j)
      if (x[i + j] == found.most) found.index = i + j;
  }
  *out = found;
}

// e^x for x <= 0 within 2 units in the last place, 0 from -708 down: n ln 2 apart (Cody & Waite, 1980), then the Taylor polynomial of
// degree 13, whose remainder is (ln 2 / 2)^14 / 14! < 5e-18.
inline double exponential_f64(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, held in the low bits
  constexpr double kInverseFactorials[] = {
      1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  const double y = x > -708.0 ? x : -708.0;
  const double shifted = y * 1.4426950408889634 + kMagic;
  const double n = shifted - kMagic;
  const double r = (y - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = kInverseFactorials[13];
  for (int i = 12; i >= 0; --i) p = p * r + kInverseFactorials[i];
  uint64_t bits;
  memcpy(&bits, &shifted, 8);
  bits = (bits + 1023) << 52;
  double power;
  memcpy(&power, &bits, 8);
  return p * power * (x > -708.0 ? 1.0 : 0.0);  // no branch: the loops around stay vectors
}

void softmax_sums(const float* x, int n, double shift, double* total, double* moment) {
  double totals[kStatisticLanes] = {}, moments[kStatisticLanes] = {};
  for_each_lanes(x, n, [&](const float* v) {
    for (int j = 0; j < kStatisticLanes; ++j) {
      const double d = static_cast<double>(v[j]) - shift, e = exponential_f64(d);
      totals[j] += e;
      moments[j] += e * (d > -708.0 ? d : -708.0);
    }
  });
  for (int width = kStatisticLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) {
      totals[j] += totals[j + width];
      moments[j] += moments[j + width];
    }
  }
  *total = totals[0];
  *moment = moments[0];
}

}  // namespace
