#include "ops/norm.h"

namespace llada {

void rms_norm(Team& team, const KernelTable& kernels, Rows x, int64_t rows, const AlignedArray<float>& weight, double eps, Rows out) {
  const int64_t width = weight.size(), grain = 1 + 32768 / width;
  team.split(rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      kernels.rms_norm_f32(x.row(r), weight.data(), out.row(r), static_cast<int>(width), static_cast<float>(eps));
  });
}

}  // namespace llada
