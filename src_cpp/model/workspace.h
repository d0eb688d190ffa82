// Activations of one forward pass, kept from call to call and grown to the largest batch seen.
#pragma once

#include "llada/model.h"
#include "ops/attention.h"
#include "ops/experts.h"

namespace llada {

class Workspace {
 public:
  // Room for `rows` rows, and for `keys` keys and values that no float32 cache holds. Strong guarantee: std::bad_alloc leaves the
  // old buffers in place.
  void fit(const ModelConfig& config, int64_t panel, int64_t rows, int64_t keys);
  int64_t bytes() const;

  Rows x;     // [rows, d_model] residual stream
  Rows h;     // [rows, d_model] normalised
  Rows q;     // [rows, heads * head_dim] queries, then what they attended to
  Rows k, v;  // [rows, kv_heads * head_dim]
  Rows gate;  // [rows, mlp_hidden or shared_expert_hidden]
  Rows up;    // the same
  Assignments assignments;  // of a mixture's rows to its experts
  QuantizedRows quantized;  // inputs of the matrix product under way, for integer weights
  AlignedArray<float> packed_k, packed_v;  // [keys, k_width], [keys, v_width]: the key stores of one layer, request after request

 private:
  int64_t rows_ = 0, keys_ = 0;
  AlignedArray<float> memory_;
};

}  // namespace llada
