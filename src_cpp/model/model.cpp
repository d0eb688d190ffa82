// The transformer, in one file.
//
//   x = embedding[tokens]
//   each layer:  h = rms(x);  q, k, v = h Wq, h Wk, h Wv;  rope(q, k)
//                x += softmax(q k^T / sqrt(head_dim)) v Wo        every row of a request sees every other
//                h = rms(x);  x += (silu(h Wgate) * (h Wup)) Wdown
//   logits = rms(x) Whead
#include "llada/model.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernels/dispatch.h"
#include "llada/runtime.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "ops/attention.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace llada {

namespace {

constexpr int kMaxThreads = 1024;

int checked_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::invalid_argument("threads: expected 1 to " + std::to_string(kMaxThreads) + ", found " + std::to_string(threads));
  return threads;
}

ModelConfig checked(const ModelConfig& c) {
  const auto positive = [](const char* name, double value) {
    if (!(value > 0)) throw std::invalid_argument(std::string(name) + ": expected more than 0, found " + std::to_string(value));
  };
  for (const auto& [name, value] : {std::pair<const char*, int64_t>{"layers", c.layers},
                                    {"d_model", c.d_model},
                                    {"heads", c.heads},
                                    {"kv_heads", c.kv_heads},
                                    {"head_dim", c.head_dim},
                                    {"mlp_hidden", c.mlp_hidden},
                                    {"vocabulary", c.vocabulary}})
    positive(name, static_cast<double>(value));
  positive("norm_eps", c.norm_eps);
  positive("rope_theta", c.rope_theta);
  if (c.heads % c.kv_heads != 0) throw std::invalid_argument("heads: expected a multiple of kv_heads");
  if (c.head_dim % 2 != 0 || c.head_dim > kMaxHeadDim)
    throw std::invalid_argument("head_dim: expected an even number up to " + std::to_string(kMaxHeadDim) + ", found " +
                                std::to_string(c.head_dim));
  return c;
}

// Where every row of a batch stands.
struct Layout {
  std::vector<Span> spans;         // [requests]
  std::vector<int32_t> positions;  // [rows] within the request
  int64_t rows = 0;
  int64_t longest = 0;
};

Layout lay_out(const RaggedBatch& batch, int64_t vocabulary) {
  Layout layout;
  for (int64_t r = 0; r < batch.requests; ++r) {
    const int64_t length = batch.lengths[r];
    if (length < 1) throw std::invalid_argument("lengths[" + std::to_string(r) + "]: expected at least 1, found " + std::to_string(length));
    layout.spans.push_back({layout.rows, length, layout.rows, length});
    for (int32_t p = 0; p < length; ++p) layout.positions.push_back(p);
    layout.rows += length;
    layout.longest = std::max(layout.longest, length);
  }
  for (int64_t i = 0; i < layout.rows; ++i)
    if (batch.tokens[i] < 0 || batch.tokens[i] >= vocabulary)
      throw std::invalid_argument("tokens[" + std::to_string(i) + "]: expected 0 to " + std::to_string(vocabulary - 1) + ", found " +
                                  std::to_string(batch.tokens[i]));
  for (int64_t i = 0; i < batch.selected; ++i)
    if (batch.rows[i] < 0 || batch.rows[i] >= layout.rows || (i > 0 && batch.rows[i] <= batch.rows[i - 1]))
      throw std::invalid_argument("rows[" + std::to_string(i) + "]: expected ascending rows below " + std::to_string(layout.rows) +
                                  ", found " + std::to_string(batch.rows[i]));
  return layout;
}

// Leaves only the selected rows with queries.
void select_queries(const RaggedBatch& batch, Layout& layout) {
  int64_t taken = 0;
  for (Span& s : layout.spans) {
    s.query_begin = taken;
    while (taken < batch.selected && batch.rows[taken] < s.row_begin + s.keys) ++taken;
    s.queries = taken - s.query_begin;
  }
  for (int64_t i = 0; i < batch.selected; ++i) layout.positions[static_cast<size_t>(i)] = layout.positions[static_cast<size_t>(batch.rows[i])];
}

// Moves the selected rows to the front; they ascend, so no row is overwritten before it moved.
void gather(const RaggedBatch& batch, Rows x, int64_t width) {
  for (int64_t i = 0; i < batch.selected; ++i)
    std::memmove(x.row(i), x.row(batch.rows[i]), static_cast<size_t>(width) * sizeof(float));
}

}  // namespace

struct Model::Impl {
  Impl(const ModelConfig& c, DType dtype, const std::string& isa_name, int n)
      : config(checked(c)),
        isa(isa_name.empty() ? active_isa() : isa_name),
        kernels(kernels_for(isa)),
        threads(checked_threads(n)),
        weights(config, dtype, kernels),
        rope_table(config.rope_theta, config.head_dim) {}

  void forward(const RaggedBatch& batch, float* hidden, const Interrupt& interrupt);

  const ModelConfig config;
  const std::string isa;
  const KernelTable& kernels;
  std::atomic<int> threads;
  Weights weights;
  // Guarded by the turn that a Team holds.
  Workspace workspace;
  RopeTable rope_table;
};

void Model::Impl::forward(const RaggedBatch& batch, float* hidden, const Interrupt& interrupt) {
  const ModelConfig& c = config;
  Layout layout = lay_out(batch, c.vocabulary);
  if (batch.selected == 0) return;
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim};
  Team team(threads, interrupt);
  workspace.fit(c, kernels.panel, layout.rows, batch.requests);
  rope_table.grow(layout.longest);
  Workspace& w = workspace;
  const int64_t all = layout.rows;

  for (int64_t i = 0; i < all; ++i) weights.embed(batch.tokens[i], w.x.row(i));

  for (const LayerWeights& layer : weights.layers) {
    const bool last = &layer == &weights.layers.back();
    const int64_t rows = last ? batch.selected : all;  // rows that go on: behind the last keys and values only the selected ones do

    rms_norm(team, kernels, w.x, all, layer.attn_norm, c.norm_eps, w.h);
    const Product k = product(layer.k_proj, w.h, all, w.k), v = product(layer.v_proj, w.h, all, w.v);
    const Product q = product(layer.q_proj, w.h, rows, w.q);
    if (last) {
      linear(team, kernels, {k, v});
      rope(team, kernels, rope_table, w.k, all, layout.positions.data(), c.kv_heads, c.head_dim);
      select_queries(batch, layout);
      gather(batch, w.h, c.d_model);
      gather(batch, w.x, c.d_model);
      linear(team, kernels, {q});
    } else {
      linear(team, kernels, {q, k, v});
      rope(team, kernels, rope_table, w.k, all, layout.positions.data(), c.kv_heads, c.head_dim);
    }
    rope(team, kernels, rope_table, w.q, rows, layout.positions.data(), c.heads, c.head_dim);
    pack_keys(team, kernels, shape, layout.spans, w.k, w.v, w.packed);
    attention(team, kernels, shape, layout.spans, w.packed, w.q);
    linear(team, kernels, {product(layer.o_proj, w.q, rows, w.x, true)});

    rms_norm(team, kernels, w.x, rows, layer.mlp_norm, c.norm_eps, w.h);
    gated_linear(team, kernels, layer.gate_proj, layer.up_proj, w.h, rows, w.gate, w.up);
    linear(team, kernels, {product(layer.down_proj, w.gate, rows, w.x, true)});
  }

  rms_norm(team, kernels, w.x, batch.selected, weights.final_norm, c.norm_eps, {hidden, static_cast<ptrdiff_t>(c.d_model)});
}

Model::Model(const ModelConfig& config, DType weights, const std::string& isa, int threads)
    : impl_(std::make_unique<Impl>(config, weights, isa, threads)) {
  if (weights == DType::float16) throw std::invalid_argument("weights: expected float32 or bfloat16, found float16");
}

Model::~Model() = default;

void Model::load(Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const void* data, DType dtype) {
  Team team(impl_->threads, {});
  impl_->weights.load(team, tensor, layer, row_begin, rows, data, dtype);
}

void Model::forward(const RaggedBatch& batch, float* hidden, const Interrupt& interrupt) const {
  impl_->forward(batch, hidden, interrupt);
}

void Model::head(const float* hidden, int64_t rows, int64_t vocab_begin, int64_t vocab_end, float* logits,
                 const Interrupt& interrupt) const {
  const int64_t vocabulary = impl_->config.vocabulary;
  if (vocab_begin < 0 || vocab_begin % kMaxPanel != 0 || vocab_end <= vocab_begin || vocab_end > vocabulary)
    throw std::invalid_argument("vocabulary tile: expected a multiple of " + std::to_string(kMaxPanel) + " to at most " +
                                std::to_string(vocabulary) + ", found " + std::to_string(vocab_begin) + " to " +
                                std::to_string(vocab_end));
  if (rows <= 0) return;
  Team team(impl_->threads, interrupt);
  const ptrdiff_t d_model = static_cast<ptrdiff_t>(impl_->config.d_model);
  // The matrix product only reads x.
  const Rows x{const_cast<float*>(hidden), d_model}, out{logits, static_cast<ptrdiff_t>(vocab_end - vocab_begin)};
  linear(team, impl_->kernels, {{&impl_->weights.head, x, rows, out, false, vocab_begin, vocab_end}});
}

const ModelConfig& Model::config() const { return impl_->config; }
const std::string& Model::isa() const { return impl_->isa; }
int Model::threads() const { return impl_->threads; }
void Model::set_threads(int threads) { impl_->threads = checked_threads(threads); }
int64_t Model::weight_bytes() const { return impl_->weights.bytes(); }
int64_t Model::workspace_bytes() const { return impl_->workspace.bytes() + impl_->rope_table.bytes(); }

}  // namespace llada
