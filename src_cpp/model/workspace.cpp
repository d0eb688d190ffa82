#include "model/workspace.h"

#include <algorithm>
#include <utility>

namespace llada {

void Workspace::fit(const ModelConfig& c, int64_t panel, int64_t rows, int64_t requests) {
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim};
  const int64_t packed_rows = rows + requests * (panel - 1);  // keys of a request are padded to whole panels
  if (packed_rows > packed_rows_) {
    PackedKeys larger{AlignedArray<float>(PackedKeys::k_size(shape, panel, rows, requests)),
                      AlignedArray<float>(PackedKeys::v_size(shape, panel, packed_rows))};
    packed = std::move(larger);
    packed_rows_ = packed_rows;
  }
  if (rows <= rows_) return;
  const std::pair<Rows*, int64_t> buffers[] = {{&x, c.d_model},
                                               {&h, c.d_model},
                                               {&q, c.heads * c.head_dim},
                                               {&k, c.kv_heads * c.head_dim},
                                               {&v, c.kv_heads * c.head_dim},
                                               {&gate, c.mlp_hidden},
                                               {&up, c.mlp_hidden}};
  int64_t total = 0;
  for (const auto& [buffer, width] : buffers) total += rows * row_stride(width);
  memory_ = AlignedArray<float>(total);
  float* next = memory_.data();
  for (const auto& [buffer, width] : buffers) {
    *buffer = {next, row_stride(width)};
    next += rows * row_stride(width);
  }
  rows_ = rows;
}

int64_t Workspace::bytes() const { return (memory_.size() + packed.k.size() + packed.v.size()) * static_cast<int64_t>(sizeof(float)); }

}  // namespace llada
