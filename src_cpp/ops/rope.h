// Rotary position embedding, rotate-half: of the first rotary_dim dimensions of a head, i is paired with i + rotary_dim / 2.
#pragma once

#include <vector>

#include "ops/linear.h"

namespace llada {

// cos and sin of position * theta^(-2 i / rotary_dim), grown to the longest request seen.
class RopeTable {
 public:
  RopeTable(double theta, int64_t rotary_dim) : theta_(theta), half_(rotary_dim / 2) {}
  void grow(int64_t positions);
  const float* cos(int64_t position) const { return cos_.data() + position * half_; }
  const float* sin(int64_t position) const { return sin_.data() + position * half_; }
  int64_t half() const { return half_; }
  int64_t bytes() const { return static_cast<int64_t>((cos_.size() + sin_.size()) * sizeof(float)); }

 private:
  double theta_;
  int64_t half_;
  std::vector<float> cos_, sin_;  // [positions, half]
};

// Rotates every head of x [rows, heads * head_dim] in place; positions [rows].
void rope(Team& team, const KernelTable& kernels, const RopeTable& table, Rows x, int64_t rows, const int32_t* positions,
          int64_t heads, int64_t head_dim);

}  // namespace llada
