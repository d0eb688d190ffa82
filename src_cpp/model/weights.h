// The parameters of a dense LLaDA.
#pragma once

#include <vector>

#include "llada/model.h"
#include "ops/embed.h"
#include "ops/linear.h"

namespace llada {

struct LayerWeights {
  AlignedArray<float> attn_norm;  // [d_model]
  Linear q_proj;                  // [heads * head_dim, d_model]
  Linear k_proj, v_proj;          // [kv_heads * head_dim, d_model]
  Linear o_proj;                  // [d_model, heads * head_dim]
  AlignedArray<float> mlp_norm;   // [d_model]
  Linear gate_proj, up_proj;      // [mlp_hidden, d_model]
  Linear down_proj;               // [d_model, mlp_hidden]
};

struct Weights {
  Weights(const ModelConfig& config, WeightFormat format, const KernelTable& kernels);

  // Stores part of a tensor; throws std::invalid_argument when the rows do not fit it.
  void load(Team& team, Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const void* data, DType dtype);

  // x = the embedding of a token; a tied head serves both.
  void embed(int64_t token, float* x) const { tied ? head.row(token, x) : embedding.row(token, x); }

  int64_t bytes() const;

  bool tied;
  Embedding embedding;  // [vocabulary, d_model]; empty when tied
  std::vector<LayerWeights> layers;
  AlignedArray<float> final_norm;  // [d_model]
  Linear head;                     // [vocabulary, d_model]
};

}  // namespace llada
