// What quantize_group compares scales by, of all its candidates at once. Part of quantized-inl.h; the same ODR contract.
#pragma once

#include "kernels/kernels-inl.h"

namespace {

using llada::kMaxGroup;
using llada::kScaleCandidates;
using llada::kSumLanes;

// A vector holds lanes of one candidate, or those of two where it has sixteen. Products are rounded before they are added: no fma, or sums
// would differ from build to build.
void scale_sums(const float* w, int count, const float* inverses, float lowest, float highest, float* w_q, float* q_q) {
  constexpr int kStep = Vec::kLanes > kSumLanes ? Vec::kLanes : kSumLanes;  // eight weights, as often as a vector holds them
  constexpr int kTogether = 4;                                              // vectors: 8 sums, 4 factors and a few others in registers
  static_assert(kScaleCandidates * kSumLanes % (kTogether * Vec::kLanes) == 0, "candidates do not fill the vectors");
  float weights[kMaxGroup / kSumLanes * kStep], factors[kScaleCandidates * kSumLanes];
  for (int i = 0; i < count / kSumLanes; ++i)
    for (int j = 0; j < kStep; ++j) weights[i * kStep + j] = w[i * kSumLanes + j % kSumLanes];
  for (int c = 0; c < kScaleCandidates; ++c)
    for (int j = 0; j < kSumLanes; ++j) factors[c * kSumLanes + j] = inverses[c];
  const int end = count / kSumLanes * kStep;
  for (int first = 0; first < kScaleCandidates * kSumLanes; first += kTogether * Vec::kLanes) {
    Vec factor[kTogether], w_sums[kTogether], q_sums[kTogether];
    for (int t = 0; t < kTogether; ++t) {
      factor[t] = load(factors + first + t * Vec::kLanes);
      w_sums[t] = q_sums[t] = zero();
    }
    for (int k = 0; k < end; k += kStep) {
      for (int t = 0; t < kTogether; ++t) {
        const Vec x = load(weights + k + t * Vec::kLanes % kStep);
        const Vec q = min(max(round_nearest(mul(x, factor[t])), broadcast(lowest)), broadcast(highest));
        w_sums[t] = add(w_sums[t], mul(x, q));
        q_sums[t] = add(q_sums[t], mul(q, q));
      }
    }
    for (int t = 0; t < kTogether; ++t) {
      store(w_q + first + t * Vec::kLanes, w_sums[t]);
      store(q_q + first + t * Vec::kLanes, q_sums[t]);
    }
  }
}

}  // namespace
