#include "model/workspace.h"

#include <algorithm>
#include <utility>

namespace llada {

void Workspace::fit(const ModelConfig& c, int64_t panel, int64_t rows, int64_t keys) {
  if (keys > keys_) {
    const AttentionShape shape{c.heads, c.kv_heads, c.head_dim};
    AlignedArray<float> k(keys * k_width(shape)), v(keys * v_width(shape, panel));
    packed_k = std::move(k);
    packed_v = std::move(v);
    keys_ = keys;
  }
  if (c.experts > 0) assignments.fit(c.experts, c.experts_per_token, c.d_model, c.expert_hidden, rows);
  if (rows <= rows_) return;
  const bool dense = c.experts == 0 || !c.dense_layers.empty();
  const int64_t gated = std::max(dense ? c.mlp_hidden : 0, c.shared_expert_hidden);
  const std::pair<Rows*, int64_t> buffers[] = {{&x, c.d_model},
                                               {&h, c.d_model},
                                               {&q, c.heads * c.head_dim},
                                               {&k, c.kv_heads * c.head_dim},
                                               {&v, c.kv_heads * c.head_dim},
                                               {&gate, gated},
                                               {&up, gated}};
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

int64_t Workspace::bytes() const {
  return (memory_.size() + packed_k.size() + packed_v.size()) * static_cast<int64_t>(sizeof(float)) + quantized.bytes() +
         assignments.bytes();
}

}  // namespace llada
