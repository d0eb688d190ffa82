// The parameters of a LLaDA.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "llada/model.h"
#include "ops/embed.h"
#include "ops/experts.h"
#include "ops/linear.h"

namespace llada {

struct LayerWeights {
  AlignedArray<float> attn_norm;  // [d_model]
  Linear q_proj;                  // [heads * head_dim, d_model]
  Linear k_proj, v_proj;          // [kv_heads * head_dim, d_model]
  AlignedArray<float> q_bias, k_bias, v_bias;  // of their matrices' channels; empty without qkv_bias
  AlignedArray<float> q_norm, k_norm;  // [head_dim]; empty without qk_norm
  Linear o_proj;                  // [d_model, heads * head_dim]
  AlignedArray<float> mlp_norm;   // [d_model]
  Linear gate_proj, up_proj;      // [mlp_hidden, d_model]; empty where there are experts
  Linear down_proj;               // [d_model, mlp_hidden]; the same
  Linear router;                  // [experts, d_model] float32: it decides between experts, as the head between tokens
  AlignedArray<float> router_bias;  // [experts]; empty without Routing::sigmoid
  std::vector<Expert> experts;    // empty in a dense layer
  Expert shared;                  // [shared_expert_hidden, d_model] and the other way round; empty without

  // Calls f(vector, width) for every vector, or f(matrix) for every matrix, in an order that never changes.
  template <class F>
  void vectors(const ModelConfig& config, const F& f);
  template <class F>
  void matrices(const F& f);
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
  void load(Team& team, Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const void* data, DType dtype, int64_t expert);

  // The same of a matrix whose rows are integers already. False, and nothing is stored, where it cannot hold them as they are.
  bool load_integers(Team& team, Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const int8_t* values,
                     const float* scales, int group, int64_t expert);

  // Of a row that is loaded: the width of a matrix, 1 of a vector.
  int64_t columns(Tensor tensor, int64_t layer, int64_t expert);

  // x = the embedding of a token; a tied head serves both.
  void embed(int64_t token, float* x) const { tied ? head.row(token, x) : embedding.row(token, x); }

  int64_t bytes();

  bool tied;
  std::unique_ptr<MappedFile> file;  // one of these two outlives the arrays below
  AlignedArray<char> memory;         // [arena_bytes()] one piece: large pages are larger than an expert
  Embedding embedding;  // [vocabulary, d_model]; empty when tied
  std::vector<LayerWeights> layers;
  AlignedArray<float> final_norm;  // [d_model]
  Linear head;                     // [vocabulary, d_model]

 private:
  // Calls f(array, bytes) for every array, in an order that never changes.
  template <class F>
  void visit(const F& f);

  // The bytes of all arrays, each at a multiple of a cache line, and those arrays in such memory.
  int64_t arena_bytes();
  void place(char* begin);

  LayerWeights& layer_of(int64_t layer);
  Expert& expert_of(int64_t layer, int64_t expert);
  Linear* matrix(Tensor tensor, int64_t layer, int64_t expert);  // nullptr for what is no Linear

  const ModelConfig config_;
};

}  // namespace llada
