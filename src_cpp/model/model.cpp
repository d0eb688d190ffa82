// The transformer, in one file.
//
//   x = embedding[tokens]
//   each layer:  h = rms(x);  q, k, v = h Wq, h Wk, h Wv, each with its bias where qkv_bias
//                q, k = rms(q), rms(k) by head, where qk_norm;  rope(q, k);  store k, v
//                x += softmax(q k^T / sqrt(head_dim)) v Wo        every row of a request sees all of its keys; shadows: RaggedBatch::twins;
//                                                                 less than all: ModelConfig::attention_block
//                h = rms(x);  x += (silu(h Wgate) * (h Wup)) Wdown     or the same of experts: mixture_of_experts, and of a shared one
//   logits = rms(x) Whead
#include "llada/model.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernels/dispatch.h"
#include "llada/runtime.h"
#include "model/kv_cache.h"
#include "model/layout.h"
#include "model/weights.h"
#include "model/workspace.h"
#include "ops/attention.h"
#include "ops/bias.h"
#include "ops/experts.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace llada {

namespace {

constexpr int kMaxThreads = 1024;
// Of a model whose weights stay in the cache that threads share: each can then run requests of its own, and need not wait for the others
// after every product.
constexpr int64_t kSharedCacheBytes = int64_t{32} << 20;

int checked_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw std::invalid_argument("threads: expected 1 to " + std::to_string(kMaxThreads) + ", found " + std::to_string(threads));
  return threads;
}

void check_routing(const ModelConfig& c) {
  const auto wrong = [](const char* name, const std::string& expected, const std::string& found) {
    throw std::invalid_argument(std::string(name) + ": expected " + expected + ", found " + found);
  };
  if (c.shared_expert_hidden < 0) wrong("shared_expert_hidden", "0 or more", std::to_string(c.shared_expert_hidden));
  if (c.routing == Routing::softmax) {
    if (c.expert_groups != 1 || c.chosen_groups != 1 || c.expert_scale != 1)
      wrong("routing", "sigmoid beside expert_groups, chosen_groups or expert_scale", "softmax");
    return;
  }
  if (c.routing != Routing::sigmoid) wrong("routing", "softmax or sigmoid", std::to_string(static_cast<int>(c.routing)));
  if (!(c.expert_scale > 0)) wrong("expert_scale", "more than 0", std::to_string(c.expert_scale));
  if (c.expert_groups < 1 || c.experts % c.expert_groups != 0)
    wrong("expert_groups", "a divisor of " + std::to_string(c.experts) + " (experts)", std::to_string(c.expert_groups));
  if (c.chosen_groups < 1 || c.chosen_groups > c.expert_groups)
    wrong("chosen_groups", "1 to " + std::to_string(c.expert_groups) + " (expert_groups)", std::to_string(c.chosen_groups));
  const int64_t size = c.experts / c.expert_groups;
  if (c.chosen_groups < c.expert_groups && size < 2)
    wrong("expert_groups", "at least 2 experts in a group, whose two best are its score", std::to_string(size));
  if (c.experts_per_token > c.chosen_groups * size)
    wrong("experts_per_token", "at most " + std::to_string(c.chosen_groups * size) + " (experts in the chosen groups)",
          std::to_string(c.experts_per_token));
}

ModelConfig checked(ModelConfig c) {
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
  if (c.rotary_dim == 0) c.rotary_dim = c.head_dim;
  if (c.rotary_dim < 0 || c.rotary_dim % 2 != 0 || c.rotary_dim > c.head_dim)
    throw std::invalid_argument("rotary_dim: expected an even number up to " + std::to_string(c.head_dim) + " (head_dim), found " +
                                std::to_string(c.rotary_dim));
  if (c.attention_block < 0)
    throw std::invalid_argument("attention_block: expected 0 or more, found " + std::to_string(c.attention_block));
  if (c.experts == 0) {
    if (c.experts_per_token != 0 || c.expert_hidden != 0 || !c.dense_layers.empty())
      throw std::invalid_argument("experts: expected more than 0 beside experts_per_token, expert_hidden or dense_layers, found 0");
    if (c.shared_expert_hidden != 0 || c.routing != Routing::softmax)
      throw std::invalid_argument("experts: expected more than 0 beside shared_expert_hidden or a routing, found 0");
    return c;
  }
  for (const auto& [name, value] : {std::pair<const char*, int64_t>{"experts", c.experts},
                                    {"experts_per_token", c.experts_per_token},
                                    {"expert_hidden", c.expert_hidden}})
    positive(name, static_cast<double>(value));
  if (c.experts_per_token > c.experts)
    throw std::invalid_argument("experts_per_token: expected at most " + std::to_string(c.experts) + " (experts), found " +
                                std::to_string(c.experts_per_token));
  for (size_t i = 0; i < c.dense_layers.size(); ++i)
    if (c.dense_layers[i] < (i == 0 ? 0 : c.dense_layers[i - 1] + 1) || c.dense_layers[i] >= c.layers)
      throw std::invalid_argument("dense_layers: expected ascending layers below " + std::to_string(c.layers) + ", found " +
                                  std::to_string(c.dense_layers[i]) + " at " + std::to_string(i));
  check_routing(c);
  return c;
}

// The caches of a batch while it runs: room for their new positions, and a length that tells what is whole.
class OpenCaches {
 public:
  OpenCaches(const RaggedBatch& batch, const Layout& layout) : caches_(layout.spans.size(), nullptr), layout_(layout) {
    for (size_t r = 0; batch.caches && r < caches_.size(); ++r) {
      if (!batch.caches[r]) continue;
      batch.caches[r]->impl().reserve(layout.spans[r].stored());
      caches_[r] = &batch.caches[r]->impl();
    }
    // Every allocation has succeeded. Until close(), only slots before the request's first are whole.
    for (size_t r = 0; r < caches_.size(); ++r)
      if (caches_[r]) caches_[r]->length = layout.slots[static_cast<size_t>(layout.spans[r].row_begin)];
  }

  void close() {
    for (size_t r = 0; r < caches_.size(); ++r)
      if (caches_[r]) caches_[r]->length = layout_.spans[r].keys;
  }

  KVCache::Impl* operator[](size_t request) const { return caches_[request]; }
  bool any() const { return std::any_of(caches_.begin(), caches_.end(), [](const KVCache::Impl* c) { return c != nullptr; }); }

 private:
  std::vector<KVCache::Impl*> caches_;  // [requests], null without one
  const Layout& layout_;
};

// Points every request at its keys of one layer: those of its float32 cache, or its part of the workspace.
void open_stores(const OpenCaches& caches, int64_t layer, const AttentionShape& shape, int64_t panel, Workspace& w, Layout& layout) {
  int64_t loose = 0;
  for (size_t r = 0; r < layout.spans.size(); ++r) {
    Span& s = layout.spans[r];
    KVCache::Impl* cache = caches[layout.request_begin + r];
    if (cache && cache->dtype == DType::float32) {
      s.store = cache->layer<float>(layer);
      continue;
    }
    if (cache) s.half = cache->layer<uint16_t>(layer);
    const int64_t capacity = layout.loose[r];
    s.store = {w.packed_k.data() + loose * k_width(shape), w.packed_v.data() + loose * v_width(shape, panel), capacity};
    loose += capacity;
  }
}

// Moves the selected rows to the front; they ascend, so no row is overwritten before it moved.
void gather(const std::vector<int32_t>& selected, Rows x, int64_t width) {
  for (size_t i = 0; i < selected.size(); ++i)
    std::memmove(x.row(static_cast<int64_t>(i)), x.row(selected[i]), static_cast<size_t>(width) * sizeof(float));
}

// Queries or keys: normalised by head, where the model has such norms, and rotated to their places.
void norm_and_rotate(Team& team, const KernelTable& kernels, const RopeTable& table, const AlignedArray<float>& norm, double eps, Rows x,
                     int64_t rows, const int32_t* places, int64_t heads, int64_t head_dim) {
  if (norm.size() > 0) head_norm(team, kernels, x, rows, heads, norm, eps);
  rope(team, kernels, table, x, rows, places, heads, head_dim);
}

// Tells the models of a process apart, whose addresses may be used again.
uint64_t next_serial() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

struct Model::Impl {
  Impl(const ModelConfig& c, WeightFormat format, const std::string& isa_name, int n)
      : config(checked(c)),
        isa(isa_name.empty() ? active_isa() : isa_name),
        kernels(kernels_for(isa)),
        threads(checked_threads(n)),
        weights(config, format, kernels),
        rope_table(config.rope_theta, config.rotary_dim) {}

  void forward(const RaggedBatch& batch, float* hidden, const Interrupt& interrupt);
  void run_layers(Team& team, Workspace& w, const OpenCaches& caches, Layout& layout, float* hidden) const;
  void count_workspaces();

  const uint64_t serial = next_serial();
  const ModelConfig config;
  const std::string isa;
  const KernelTable& kernels;
  std::atomic<int> threads;
  Weights weights;
  // Guarded by the turn that a Team holds.
  std::vector<Workspace> workspaces{1};  // one a thread, where threads run parts of a batch
  RopeTable rope_table;
  // Of them both since the last pass, for those who ask without a turn.
  std::atomic<int64_t> workspace_bytes{0};
};

void Model::Impl::forward(const RaggedBatch& batch, float* hidden, const Interrupt& interrupt) {
  Team team(threads, interrupt);
  Layout whole = lay_out(batch, config, kernels.panel, serial);
  std::vector<Layout> parts;
  if (weights.bytes() <= kSharedCacheBytes) parts = share_out(whole, team.size());
  int64_t rows = parts.empty() ? whole.rows() : 0, loose_keys = parts.empty() ? whole.loose_keys() : 0;
  for (const Layout& part : parts) rows = std::max(rows, part.rows()), loose_keys = std::max(loose_keys, part.loose_keys());
  const size_t used = parts.empty() ? 1 : static_cast<size_t>(team.size());
  if (used > workspaces.size()) workspaces.resize(used);
  for (size_t i = 0; i < used; ++i) workspaces[i].fit(config, kernels.panel, rows, loose_keys);
  rope_table.grow(whole.farthest() + 1);
  OpenCaches caches(batch, whole);  // a failure before it changes no cache
  if (batch.selected == 0 && !caches.any()) return;
  if (parts.empty()) {
    run_layers(team, workspaces[0], caches, whole, hidden);
  } else {
    std::atomic<size_t> next{0};
    team.run([&](int thread) {
      Team alone(team, thread);
      for (size_t i = next++; i < parts.size(); i = next++)
        run_layers(alone, workspaces[static_cast<size_t>(thread)], caches, parts[i], hidden + parts[i].selected_begin * config.d_model);
    });
  }
  count_workspaces();
  caches.close();
}

void Model::Impl::count_workspaces() {
  int64_t total = rope_table.bytes();
  for (const Workspace& each : workspaces) total += each.bytes();
  workspace_bytes = total;
}

void Model::Impl::run_layers(Team& team, Workspace& w, const OpenCaches& caches, Layout& layout, float* hidden) const {
  const ModelConfig& c = config;
  const AttentionShape shape{c.heads, c.kv_heads, c.head_dim, c.attention_block};
  const int64_t all = layout.rows(), selected = static_cast<int64_t>(layout.selected.size());
  const auto add_mlp = [&](const Linear& gate, const Linear& up, const Linear& down, int64_t rows) {
    gated_linear(team, kernels, w.quantized, gate, up, w.h, rows, w.gate, w.up);
    linear(team, kernels, w.quantized, {product(down, w.gate, rows, w.x, true)});
  };

  for (int64_t i = 0; i < all; ++i) weights.embed(layout.tokens[static_cast<size_t>(i)], w.x.row(i));

  for (int64_t i = 0; i < c.layers; ++i) {
    const LayerWeights& layer = weights.layers[static_cast<size_t>(i)];
    const bool last = i == c.layers - 1;
    const int64_t rows = last ? selected : all;  // rows that go on: behind the last keys and values only the selected ones do

    open_stores(caches, i, shape, kernels.panel, w, layout);
    rms_norm(team, kernels, w.x, all, layer.attn_norm, c.norm_eps, w.h);
    const Product k = product(layer.k_proj, w.h, all, w.k), v = product(layer.v_proj, w.h, all, w.v);
    const Product q = product(layer.q_proj, w.h, rows, w.q);
    if (last) {
      linear(team, kernels, w.quantized, {k, v});
      add_bias(team, w.k, all, layer.k_bias);
      add_bias(team, w.v, all, layer.v_bias);
      norm_and_rotate(team, kernels, rope_table, layer.k_norm, c.norm_eps, w.k, all, layout.places.data(), c.kv_heads, c.head_dim);
      store_keys(team, kernels, shape, layout.spans, layout.slots.data(), w.k, w.v);
      if (rows == 0) break;
      layout.select_queries();
      gather(layout.selected, w.h, c.d_model);
      gather(layout.selected, w.x, c.d_model);
      linear(team, kernels, w.quantized, {q});
    } else {
      linear(team, kernels, w.quantized, {q, k, v});
      add_bias(team, w.k, all, layer.k_bias);
      add_bias(team, w.v, all, layer.v_bias);
      norm_and_rotate(team, kernels, rope_table, layer.k_norm, c.norm_eps, w.k, all, layout.places.data(), c.kv_heads, c.head_dim);
      store_keys(team, kernels, shape, layout.spans, layout.slots.data(), w.k, w.v);
    }
    add_bias(team, w.q, rows, layer.q_bias);
    norm_and_rotate(team, kernels, rope_table, layer.q_norm, c.norm_eps, w.q, rows, layout.places.data(), c.heads, c.head_dim);
    attention(team, kernels, shape, layout.spans, layout.slots.data(), layout.twins.data(), w.q);
    linear(team, kernels, w.quantized, {product(layer.o_proj, w.q, rows, w.x, true)});

    rms_norm(team, kernels, w.x, rows, layer.mlp_norm, c.norm_eps, w.h);
    if (c.has_experts(i)) {
      const Choice choice{c.experts,       c.experts_per_token, c.routing, c.expert_groups,
                          c.chosen_groups, c.expert_scale,      layer.router_bias.data()};
      mixture_of_experts(team, kernels, w.quantized, layer.router, choice, layer.experts, w.h, rows, w.assignments, w.x);
      if (c.shared_expert_hidden > 0) add_mlp(layer.shared.gate_proj, layer.shared.up_proj, layer.shared.down_proj, rows);
    } else {
      add_mlp(layer.gate_proj, layer.up_proj, layer.down_proj, rows);
    }
  }

  if (selected > 0) rms_norm(team, kernels, w.x, selected, weights.final_norm, c.norm_eps, {hidden, static_cast<ptrdiff_t>(c.d_model)});
}

bool ModelConfig::has_experts(int64_t layer) const {
  return experts > 0 && !std::binary_search(dense_layers.begin(), dense_layers.end(), layer);
}

Model::Model(const ModelConfig& config, WeightFormat weights, const std::string& isa, int threads, const std::string& packed_file,
             const std::string& tag)
    : impl_(std::make_unique<Impl>(config, weights, isa, threads)) {
  if (packed_file.empty()) {
    impl_->weights.allocate();
  } else {
    impl_->weights.map(packed_file, tag);
  }
}

Model::~Model() = default;

KVCache::KVCache(const Model& model, DType dtype)
    : impl_(std::make_unique<Impl>(model.impl_->serial, model.config().layers,
                                   AttentionShape{model.config().heads, model.config().kv_heads, model.config().head_dim},
                                   model.impl_->kernels.panel, dtype)) {
  if (dtype != DType::float32 && dtype != DType::float16) throw std::invalid_argument("dtype: expected float32 or float16, found another");
}

bool KVCache::belongs_to(const Model& model) const { return impl_->model == model.impl_->serial; }

void Model::save(const std::string& path, const std::string& tag) const { impl_->weights.save(path, tag); }

void Model::load(Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const void* data, DType dtype, int64_t expert) {
  if (impl_->weights.file) throw std::invalid_argument("mapped weights cannot be changed");
  Team team(impl_->threads, {});
  impl_->weights.load(team, tensor, layer, row_begin, rows, data, dtype, expert);
}

bool Model::load_integers(Tensor tensor, int64_t layer, int64_t row_begin, int64_t rows, const int8_t* values, const float* scales,
                          int group, int64_t expert) {
  if (impl_->weights.file) throw std::invalid_argument("mapped weights cannot be changed");
  Team team(impl_->threads, {});
  return impl_->weights.load_integers(team, tensor, layer, row_begin, rows, values, scales, group, expert);
}

int64_t Model::columns(Tensor tensor, int64_t layer, int64_t expert) const { return impl_->weights.columns(tensor, layer, expert); }

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
  linear(team, impl_->kernels, impl_->workspaces[0].quantized, {{&impl_->weights.head, x, rows, out, false, vocab_begin, vocab_end}});
  impl_->count_workspaces();
}

const ModelConfig& Model::config() const { return impl_->config; }
const std::string& Model::isa() const { return impl_->isa; }
int Model::threads() const { return impl_->threads; }
void Model::set_threads(int threads) { impl_->threads = checked_threads(threads); }
int64_t Model::weight_bytes() const { return impl_->weights.bytes(); }
int64_t Model::workspace_bytes() const { return impl_->workspace_bytes; }

}  // namespace llada
