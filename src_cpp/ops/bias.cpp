#include "ops/bias.h"

namespace llada {

void add_bias(Team& team, Rows x, int64_t rows, const AlignedArray<float>& bias) {
  const int64_t width = bias.size();
  if (width == 0) return;
  team.split(rows, 1 + 32768 / width, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t i = 0; i < width; ++i) x.row(r)[i] += bias[i];
  });
}

}  // namespace llada
