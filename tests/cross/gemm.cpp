// The float matrix product.
#include <cmath>
#include <cstring>

#include "check.h"
#include "comparisons.h"

namespace cross {
namespace {

Buffer<float> multiply(const KernelTable& table, const float* a, int a_stride, const Buffer<float>& w, const Buffer<float>& c, int rows,
                       int depth, bool accumulate, Check& check) {
  const int stride = kChannels + kGap, w_stride = table.panel + 3;
  Buffer<float> out(rows * stride, NAN);
  for (int r = 0; accumulate && r < rows; ++r)
    std::memcpy(&out[r * stride], &c[r * kChannels], sizeof(float) * kChannels);
  for (int begin = 0; begin < kChannels; begin += table.panel) {
    Buffer<float> panel(depth * w_stride, NAN);
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < table.panel; ++j) panel[k * w_stride + j] = w[k * kChannels + begin + j];
    table.gemm_f32({a, a_stride, panel.data(), w_stride, out.data() + begin, stride, rows, depth, accumulate, ahead_of(begin)});
  }
  check.guards(out);
  for (int r = 0; r < rows; ++r)
    for (int j = kChannels; j < stride; ++j) check.near(r * stride + j, out[r * stride + j], NAN, 0);
  return out;
}

}  // namespace

void gemm(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "gemm_f32");
  const int stride = kChannels + kGap;
  for (const char* fill : kFills)
    for (int depth : {1, 7, 64, 255, 256})
      for (int rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 29})
        for (bool accumulate : {false, true}) {
          check.at(text({{"rows", rows}, {"depth", depth}, {"accumulate", accumulate}}, fill));
          const int a_stride = depth + 3;
          const Buffer<float> a = filled(fill, rows * a_stride), w = normals(depth * kChannels),
                              c = normals(rows * kChannels);
          const Buffer<float> found = multiply(table, a.data(), a_stride, w, c, rows, depth, accumulate, check);
          const Buffer<float> wanted = multiply(scalar, a.data(), a_stride, w, c, rows, depth, accumulate, check);
          for (int r = 0; r < rows; ++r)
            for (int j = 0; j < kChannels; ++j) {
              // Each side's chain rounds at most depth + 1 times by half an epsilon of the sum of magnitudes, then the sum with c.
              double size = accumulate ? std::abs(c[r * kChannels + j]) : 0;
              for (int k = 0; k < depth; ++k)
                size += std::abs(static_cast<double>(a[r * a_stride + k]) * w[k * kChannels + j]);
              const int i = r * stride + j;
              check.near(i, found[i], wanted[i], (depth + 2) * (kEpsilon * size + kTiny));
            }
          for (int r = 0; r < rows; ++r) {
            Buffer<float> own(kChannels);
            std::memcpy(own.data(), &c[r * kChannels], sizeof(float) * kChannels);
            const Buffer<float> alone = multiply(table, a.data() + r * a_stride, a_stride, w, own, 1, depth, accumulate, check);
            for (int j = 0; j < kChannels; ++j) check.same(r * stride + j, found[r * stride + j], alone[j]);
          }
        }
}

}  // namespace cross
