// One row of logits -> a token and its confidence, by the rule of llada_native/_sampler.pyx:
//
//   N = L - T ln(-ln u)           Gumbel noise in the log domain; N = L at temperature 0
//   token = argmax N              the lowest index on ties
//   confidence = softmax(L)[token]
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace llada {

struct DrawRule {
  double temperature;
  uint32_t top_k;  // 0: off
  double top_p;    // 1: off
};

// Uniform numbers in [0, 1).
struct Uniform {
  double (*next)(void* state);
  void* state;
};

struct Drawn {
  uint32_t token;
  double confidence;
};

class Drawer {
 public:
  Drawer(int64_t vocabulary, const KernelTable& kernels) : vocabulary_(vocabulary), kernels_(kernels) {}

  // False when the row is NaN or has no finite value. Throws std::invalid_argument for a number outside [0, 1).
  bool draw(const float* logits, const DrawRule& rule, const Uniform& uniform, Drawn& drawn);

 private:
  void keep(const float* logits, const DrawRule& rule);

  const int64_t vocabulary_;
  const KernelTable& kernels_;
  std::vector<uint32_t> kept_;  // tokens that may be drawn, ascending
  std::vector<double> mass_;    // [kept_] most likely first, unnormalised
};

}  // namespace llada
