// The parameters of a dense LLaDA.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
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
  // Without memory: `allocate` or `map` follows.
  Weights(const ModelConfig& config, WeightFormat format, const KernelTable& kernels);

  void allocate();

  // Everything as one file that `map` reads back: for the same configuration, format and kernels, which `tag` has to name.
  void save(const std::string& path, const std::string& tag);

  // Points at the weights of a saved file. Throws std::invalid_argument when it is no such file, not whole, or of another tag.
  void map(const std::string& path, const std::string& tag);

  // Stores part of a tensor; throws std::invalid_argument when the rows do not fit it.
  void load(Team& team, Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const void* data, DType dtype);

  // x = the embedding of a token; a tied head serves both.
  void embed(int64_t token, float* x) const { tied ? head.row(token, x) : embedding.row(token, x); }

  int64_t bytes() const;

  bool tied;
  std::unique_ptr<MappedFile> file;  // outlives the arrays below
  Embedding embedding;  // [vocabulary, d_model]; empty when tied
  std::vector<LayerWeights> layers;
  AlignedArray<float> final_norm;  // [d_model]
  Linear head;                     // [vocabulary, d_model]

 private:
  // Calls f(array, bytes) for every array, in an order that never changes.
  template <class F>
  void visit(const F& f);
  int64_t d_model_;
};

}  // namespace llada
