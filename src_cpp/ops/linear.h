// out = x . W^T, with W packed in panels of output channels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "base/team.h"
#include "kernels/table.h"
#include "llada/types.h"

namespace llada {

// Activations are rows of floats, `stride` floats apart.
struct Rows {
  float* data;
  ptrdiff_t stride;
  float* row(int64_t i) const { return data + i * stride; }
};

// Rows a multiple of 4 KiB apart would share their cache sets, so the stride of an activation buffer is odd in cache lines.
constexpr ptrdiff_t row_stride(int64_t width) { return static_cast<ptrdiff_t>(round_up(width, 32) + 16); }

// A weight matrix [channels, depth] stored as panels [ceil(channels / panel)][depth][panel], the last one zero-padded.
class Linear {
 public:
  Linear() = default;
  Linear(int64_t channels, int64_t depth, DType dtype, const KernelTable& kernels);

  // Packs rows [row_begin, row_begin + rows) of the matrix.
  void load(Team& team, int64_t row_begin, int64_t rows, const void* data, DType dtype);

  // out[depth] = row `channel` of the matrix.
  void row(int64_t channel, float* out) const;

  int64_t channels() const { return channels_; }
  int64_t depth() const { return depth_; }
  int64_t panels() const { return panels_; }
  int64_t bytes() const { return data_.size(); }

  // The float32 block [depth_count, panel] of a panel: in place, or widened into scratch [kDepthBlock * kMaxPanel].
  const float* block(int64_t panel, int64_t depth_begin, int64_t depth_count, float* scratch) const;

 private:
  int64_t channels_ = 0, depth_ = 0, panels_ = 0, panel_ = 0;
  DType dtype_ = DType::float32;
  const KernelTable* kernels_ = nullptr;
  AlignedArray<char> data_;
};

// One matrix product of a parallel region.
struct Product {
  const Linear* weight;
  Rows x;               // [rows, depth]
  int64_t rows;
  Rows out;             // [rows, channel_end - channel_begin]
  bool accumulate;      // add to out
  int64_t channel_begin;  // a multiple of kMaxPanel
  int64_t channel_end;
};

inline Product product(const Linear& weight, Rows x, int64_t rows, Rows out, bool accumulate = false) {
  return {&weight, x, rows, out, accumulate, 0, weight.channels()};
}

// All products in one parallel region.
void linear(Team& team, const KernelTable& kernels, const std::vector<Product>& products);

// out = silu(x . gate^T) * (x . up^T); `up_out` is scratch of out's shape.
void gated_linear(Team& team, const KernelTable& kernels, const Linear& gate, const Linear& up, Rows x, int64_t rows, Rows out,
                  Rows up_out);

}  // namespace llada
