#include "ops/rope.h"

#include <cmath>

namespace llada {

void RopeTable::grow(int64_t positions) {
  const int64_t have = static_cast<int64_t>(cos_.size()) / half_;
  if (positions <= have) return;
  std::vector<float> cos = cos_, sin = sin_;
  cos.resize(static_cast<size_t>(positions * half_));
  sin.resize(static_cast<size_t>(positions * half_));
  for (int64_t i = 0; i < half_; ++i) {
    // The model was trained on float32 frequencies and float32 angles, so both are rounded; only then are cos and sin exact.
    const float frequency = static_cast<float>(std::pow(theta_, -static_cast<double>(i) / static_cast<double>(half_)));
    for (int64_t p = have; p < positions; ++p) {
      const double angle = static_cast<float>(p) * frequency;
      cos[static_cast<size_t>(p * half_ + i)] = static_cast<float>(std::cos(angle));
      sin[static_cast<size_t>(p * half_ + i)] = static_cast<float>(std::sin(angle));
    }
  }
  cos_.swap(cos);
  sin_.swap(sin);
}

void rope(Team& team, const KernelTable& kernels, const RopeTable& table, Rows x, int64_t rows, const int32_t* positions,
          int64_t heads, int64_t head_dim) {
  const int64_t grain = 1 + 32768 / (heads * head_dim);
  team.split(rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t h = 0; h < heads; ++h)
        kernels.rope_f32(x.row(r) + h * head_dim, table.cos(positions[r]), table.sin(positions[r]), static_cast<int>(table.half()));
  });
}

}  // namespace llada
