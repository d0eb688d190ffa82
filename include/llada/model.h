// A LLaDA: configuration, weights packed for one instruction set, and the forward pass.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llada/kv_cache.h"
#include "llada/types.h"

namespace llada {

struct ModelConfig {
  int64_t layers = 0;
  int64_t d_model = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t mlp_hidden = 0;
  int64_t vocabulary = 0;  // rows of the embedding and of the head
  double norm_eps = 0;
  double rope_theta = 0;
  bool tied_head = false;
  bool qk_norm = false;          // queries and keys are normalised head by head, before RoPE
  bool qkv_bias = false;         // queries, keys and values have a bias, before that
  int64_t rotary_dim = 0;        // RoPE turns the first so many dimensions of each head and passes the others; 0: all
  // A row in slot s sees the slots below (s / attention_block + 1) * attention_block of its request, whatever else its cache holds: the
  // blocks before its own, and its own, which begin at slot 0. 0: all of its request.
  int64_t attention_block = 0;
  // Mixtures of experts instead of MLPs, none by default.
  int64_t experts = 0;
  int64_t experts_per_token = 0;
  int64_t expert_hidden = 0;
  std::vector<int64_t> dense_layers = {};  // ascending: those that have an MLP of mlp_hidden all the same
  Routing routing = Routing::softmax;
  int64_t expert_groups = 1;         // as large as each other: consecutive ids
  int64_t chosen_groups = 1;
  double expert_scale = 1;
  int64_t shared_expert_hidden = 0;  // of an MLP that every row goes through beside its experts; 0: none

  bool has_experts(int64_t layer) const;
};

// The tensors of a model. `layer` is ignored for the embedding, the final norm and the head.
enum class Tensor : int32_t {
  embedding,    // [vocabulary, d_model]
  attn_norm,    // [d_model]
  q_proj,       // [heads * head_dim, d_model]
  k_proj,       // [kv_heads * head_dim, d_model]
  v_proj,       // [kv_heads * head_dim, d_model]
  o_proj,       // [d_model, heads * head_dim]
  mlp_norm,     // [d_model]
  gate_proj,    // [mlp_hidden, d_model]
  up_proj,      // [mlp_hidden, d_model]
  down_proj,    // [d_model, mlp_hidden]
  final_norm,   // [d_model]
  head,         // [vocabulary, d_model]; absent when tied
  q_norm,       // [head_dim]; with qk_norm
  k_norm,       // [head_dim]; with qk_norm
  router,       // [experts, d_model], always held as float32
  expert_gate_proj,  // [expert_hidden, d_model]
  expert_up_proj,    // [expert_hidden, d_model]
  expert_down_proj,  // [d_model, expert_hidden]
  router_bias,       // [experts]; with Routing::sigmoid
  shared_gate_proj,  // [shared_expert_hidden, d_model]
  shared_up_proj,    // [shared_expert_hidden, d_model]
  shared_down_proj,  // [d_model, shared_expert_hidden]
  q_bias,       // [heads * head_dim]; with qkv_bias
  k_bias,       // [kv_heads * head_dim]; with qkv_bias
  v_bias,       // [kv_heads * head_dim]; with qkv_bias
};

// Requests of different lengths, end to end: no padding exists.
struct RaggedBatch {
  const int32_t* tokens;   // [sum(lengths)]
  const int32_t* lengths;  // [requests]
  int64_t requests;
  const int32_t* rows;     // [selected] ascending indices into tokens: the rows whose hidden state is wanted
  int64_t selected;
  // A request with a cache stands at positions [p, p + length), p at most the cache's length. Its keys and values replace those
  // positions or extend the cache, and its rows see all that the cache then holds, behind the request too. At p = 0 with every token
  // given, and a float32 cache that holds no more positions than the request, it is the pass without a cache, bit for bit; truncate a
  // cache before another request uses it. A forward that throws leaves the cache with its first p positions.
  const int32_t* positions = nullptr;    // [requests] of each first token; nullptr for 0
  KVCache* const* caches = nullptr;      // [requests], entries may be null; nullptr for none
  // Instead of positions, where each row's keys and values lie in its request's cache: ascending within the request; from the cache's
  // length on they follow it without a gap. Rows see the whole cache here too, and a forward that throws leaves what is before the
  // request's first slot. With attention_block rows see less, and neither places other than the slots nor twins are taken.
  const int32_t* slots = nullptr;        // [sum(lengths)]; nullptr: positions[r], positions[r] + 1, ...
  // Keys are stored after RoPE, so a cache takes slots of any places in any order.
  const int32_t* places = nullptr;       // [sum(lengths)] position of each row for RoPE; nullptr: its slot
  // Shadows (of WINO, arXiv:2507.18578) are the last rows of a request and stand for others of its rows: a shadow sees every key of its
  // request, the cache's too, except the one in its twin's slot, and those of all shadows of its request, its own included. Other rows do
  // not see shadows and are, bit for bit, what they are without them; a request has at least one. No cache keeps a shadow, though it grows
  // to make room, and a float16 one rounds its keys. A shadow's slot is -1, its place without `places` the twin's slot.
  const int32_t* twins = nullptr;        // [sum(lengths)] slot of each shadow's twin, one that its request sees; -1: no shadow
};

// Thread-safe once loaded: calls from several threads take turns.
class Model {
 public:
  // `isa` is empty for active_isa(). Matrices are held as any DType; with integers the embedding is bfloat16 and the head int8.
  // With `packed_file`, the weights are mapped from a file that `save` wrote under the same tag, read-only and shared between processes;
  // std::invalid_argument says that it is another.
  Model(const ModelConfig& config, WeightFormat weights, const std::string& isa, int threads, const std::string& packed_file = "",
        const std::string& tag = "");
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Stores rows [row_begin, row_begin + rows) of a matrix, or a whole vector with rows = its length. Row-major, any alignment. `expert`
  // is that of an expert's matrix.
  // Throws std::out_of_range when float16 cannot hold a finite value (above 65504 in magnitude), or the scale of integers (above 8 or 127
  // times that); the rows are then undefined.
  void load(Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const void* data, DType dtype, int64_t expert = -1);

  // The same of rows that are integers already: values [rows, columns], scales [rows, columns / group], w = scale * value. They are kept
  // as they are; false, and nothing is stored, for a tensor that does not hold its weights as such integers in such groups, or scales that
  // float16 does not hold.
  bool load_integers(Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const int8_t* values, const float* scales, int group,
                     int64_t expert = -1);

  // Of a row that is stored so: the width of a matrix, 1 of a vector.
  int64_t columns(Tensor tensor, int64_t layer, int64_t expert = -1) const;

  // All weights as they lie in memory. The layout is that of the instruction set, which `tag` has to name, beside the configuration, the
  // format and whatever tells the weights apart.
  void save(const std::string& path, const std::string& tag) const;

  // hidden[selected, d_model]: the final-norm output of the selected rows.
  void forward(const RaggedBatch& batch, float* hidden, const Interrupt& interrupt) const;

  // logits[rows, vocab_end - vocab_begin] = hidden[rows, d_model] . head[vocab_begin:vocab_end, :]^T
  void head(const float* hidden, int64_t rows, int64_t vocab_begin, int64_t vocab_end, float* logits,
            const Interrupt& interrupt) const;

  const ModelConfig& config() const;
  const std::string& isa() const;
  int threads() const;
  void set_threads(int threads);
  int64_t weight_bytes() const;
  int64_t workspace_bytes() const;

  struct Impl;

 private:
  friend class KVCache;
  std::unique_ptr<Impl> impl_;
};

}  // namespace llada
