// What quantize_group compares scales by, of all its candidates at once. Part of quantized-inl.h; the same ODR contract.
#pragma once

#include "kernels/kernels-inl.h"

namespace {

using llada::kScaleCandidates;
using llada::kSumLanes;

// Vectors hold candidates. Products are rounded before they are added: no fma, or sums would differ from build to build.
void scale_sums(const float* w, int count, const float* inverses, float lowest, float highest, float* w_q, float* q_q) {
  constexpr int kVectors = kScaleCandidates / Vec::kLanes;
  Vec inverse[kVectors];
  for (int v = 0; v < kVectors; ++v) inverse[v] = load(inverses + v * Vec::kLanes);
  for (int lane = 0; lane < kSumLanes; ++lane, w_q += kScaleCandidates, q_q += kScaleCandidates) {
    Vec w_sums[kVectors], q_sums[kVectors];
    for (int v = 0; v < kVectors; ++v) w_sums[v] = q_sums[v] = zero();
    for (int i = lane; i < count; i += kSumLanes) {
      const Vec x = broadcast(w[i]);
      for (int v = 0; v < kVectors; ++v) {
        const Vec q = min(max(round_nearest(mul(x, inverse[v])), broadcast(lowest)), broadcast(highest));
        w_sums[v] = add(w_sums[v], mul(x, q));
        q_sums[v] = add(q_sums[v], mul(q, q));
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      store(w_q + v * Vec::kLanes, w_sums[v]);
      store(q_q + v * Vec::kLanes, q_sums[v]);
    }
  }
}

}  // namespace
