// Attention of a tile of rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "comparisons.h"

namespace cross {
namespace {

Buffer<float> attend(const KernelTable& table, const float* q, const Buffer<float>& k, const Buffer<float>& v, int rows, int keys, int dim,
                     float scale, Check& check, const int32_t* hidden = nullptr) {
  const int panel = table.panel, padded = (keys + panel - 1) / panel * panel, width = (dim + panel - 1) / panel * panel;
  const int stride = dim + kGap;
  Buffer<float> panels(padded * dim), wide(keys * width), out(rows * stride, 7.0f);
  for (int i = 0; i < keys; ++i)
    for (int d = 0; d < dim; ++d) {
      panels[(i / panel * dim + d) * panel + i % panel] = k[i * dim + d];
      wide[i * width + d] = v[i * dim + d];
    }
  table.attention_f32({q, dim, panels.data(), wide.data(), out.data(), stride, rows, keys, dim, scale, hidden});
  check.guards(out);
  for (int r = 0; r < rows; ++r)
    for (int d = dim; d < stride; ++d) check.same(r * stride + d, out[r * stride + d], 7.0f);
  return out;
}

// What a row may differ by from scalar's, as a share of the largest value. On each side a score errs by (dim + 2) / 2 epsilon of its
// magnitudes, which the exponential makes relative, in a weight and in the sum of weights; the two sums over the keys round keys / 2
// epsilon each, scaling and division a few more.
double attention_error(const float* row, const Buffer<float>& k, int keys, int dim, float scale) {
  double score = 0;  // the largest sum of magnitudes of a score
  for (int i = 0; i < keys; ++i) {
    double size = 0;
    for (int d = 0; d < dim; ++d) size += std::abs(static_cast<double>(row[d]) * k[i * dim + d]) * scale;
    score = std::max(score, size);
  }
  return 2 * ((dim + 2) * kEpsilon * score + 2 * kExponential + (keys + 4) * kEpsilon);
}

double largest_value(const Buffer<float>& v, int keys, int dim, int d) {
  double value = 0;
  for (int j = 0; j < keys; ++j) value = std::max(value, static_cast<double>(std::abs(v[j * dim + d])));
  return value;
}

Buffer<float> without(const Buffer<float>& x, int key, int dim) {
  if (key < 0) return x;
  Buffer<float> kept(x.size() - dim);
  for (int i = 0; i < kept.size(); ++i) kept[i] = x[i < key * dim ? i : i + dim];
  return kept;
}

// A row with a hidden key is what scalar makes of the others. Alone and with that key NaN and its value infinite it has the same bits.
void attention_without(const KernelTable& table, const KernelTable& scalar, Check& check) {
  for (int dim : {2, 24, 128})
    for (int keys : {2, 16, 33, 128, 129, 256, 257, 300}) {
      const int rows = table.attention_rows - keys % 3, stride = dim + kGap;
      const float scale = 1 / std::sqrt(static_cast<float>(dim));
      check.at(text({{"rows", rows}, {"keys", keys}, {"dim", dim}}, "hidden"));
      const Buffer<float> q = normals(rows * dim), k = normals(keys * dim), v = normals(keys * dim);
      std::vector<int32_t> hidden{0, keys - 1, -1, std::min(127, keys - 1)};
      while (hidden.size() < static_cast<size_t>(rows)) hidden.push_back(uniform(0, keys - 1));
      const Buffer<float> found = attend(table, q.data(), k, v, rows, keys, dim, scale, check, hidden.data());
      for (int r = 0; r < rows; ++r) {
        const int32_t key = hidden[static_cast<size_t>(r)];
        const float* row = q.data() + r * dim;
        const Buffer<float> others = without(k, key, dim), values = without(v, key, dim);
        const int seen = others.size() / dim;
        const Buffer<float> wanted = attend(scalar, row, others, values, 1, seen, dim, scale, check);
        Buffer<float> damaged_k = k, damaged_v = v;
        for (int d = 0; key >= 0 && d < dim; ++d) damaged_k[key * dim + d] = NAN, damaged_v[key * dim + d] = INFINITY;
        const Buffer<float> alone = attend(table, row, damaged_k, damaged_v, 1, keys, dim, scale, check, &key);
        const double relative = attention_error(row, others, seen, dim, scale);
        for (int d = 0; d < dim; ++d) {
          check.near(r * stride + d, found[r * stride + d], wanted[d], relative * largest_value(values, seen, dim, d) + kTiny);
          check.same(r * stride + d, alone[d], found[r * stride + d]);
        }
      }
    }
}

}  // namespace

void attention(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "attention_f32");
  for (const std::string fill : {"normal", "zeros", "denormals", "loud", "damaged"})
    for (int dim : {2, 16, 24, 64, 128, 256})
      for (int keys : {1, 5, 15, 16, 17, 31, 33, 64, 65, 200}) {
        const int rows = table.attention_rows - keys % 3, stride = dim + kGap;
        const float scale = 1 / std::sqrt(static_cast<float>(dim));
        check.at(text({{"rows", rows}, {"keys", keys}, {"dim", dim}}, fill.c_str()));
        Buffer<float> q = filled(fill, rows * dim), k = filled(fill, keys * dim);
        const Buffer<float> v = normals(k.size());
        if (fill == "loud") k[uniform(0, keys - 1) * dim] = 1000;  // one key outweighs the others, by hundreds
        if (fill == "damaged") q[rows / 2 * dim] = uniform(0, 1) ? NAN : INFINITY;
        const Buffer<float> found = attend(table, q.data(), k, v, rows, keys, dim, scale, check);
        for (int r = 0; r < rows; ++r) {
          const float* row = q.data() + r * dim;
          const Buffer<float> wanted = attend(scalar, row, k, v, 1, keys, dim, scale, check);
          const Buffer<float> alone = attend(table, row, k, v, 1, keys, dim, scale, check);
          const double relative = attention_error(row, k, keys, dim, scale);
          for (int d = 0; d < dim; ++d) {
            const int i = r * stride + d;
            check.near(i, found[i], wanted[d], relative * largest_value(v, keys, dim, d) + kTiny);
            if (std::isnan(found[i])) {
              check.near(i, alone[d], NAN, 0);
            } else {
              check.same(i, found[i], alone[d]);
            }
          }
        }
      }
  attention_without(table, scalar, check);
}

}  // namespace cross
