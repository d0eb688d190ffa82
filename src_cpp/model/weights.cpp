#include "model/weights.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops/convert.h"

#if defined(__SANITIZE_ADDRESS__)  // GCC and MSVC; Clang has a feature
#define LLADA_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LLADA_ADDRESS_SANITIZER
#endif
#endif

namespace llada {

namespace {

constexpr char kMagic[8] = {'L', 'L', 'A', 'D', 'A', 'P', 'K', '1'};
constexpr int64_t kPage = 4096, kLine = 64;

[[noreturn]] void does_not_fit(int64_t begin, int64_t rows, int64_t have) {
  throw std::invalid_argument("rows " + std::to_string(begin) + " to " + std::to_string(begin + rows) + " of a tensor that has " +
                              std::to_string(have));
}

void check_rows(int64_t begin, int64_t rows, int64_t have) {
  if (begin < 0 || rows <= 0 || begin + rows > have) does_not_fit(begin, rows, have);
}

void load_vector(AlignedArray<float>& vector, int64_t begin, int64_t rows, const void* data, DType dtype) {
  check_rows(begin, rows, vector.size());
  for (int64_t i = 0; i < rows; ++i) vector[begin + i] = element(data, dtype, i);
}

}  // namespace

Weights::Weights(const ModelConfig& c, WeightFormat format, const KernelTable& kernels) : tied(c.tied_head), config_(c) {
  const int64_t q_width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  if (!tied) embedding = Embedding(c.vocabulary, c.d_model, format.quantized() || format.rounds() ? DType::bfloat16 : format.dtype);
  for (int64_t i = 0; i < c.layers; ++i) {
    LayerWeights layer;
    layer.q_proj = Linear(q_width, c.d_model, format, kernels);
    layer.k_proj = Linear(kv_width, c.d_model, format, kernels);
    layer.v_proj = Linear(kv_width, c.d_model, format, kernels);
    layer.o_proj = Linear(c.d_model, q_width, format, kernels);
    if (c.has_experts(i)) {
      layer.router = Linear(c.experts, c.d_model, DType::float32, kernels);
      for (int64_t e = 0; e < c.experts; ++e)
        layer.experts.push_back({Linear(c.expert_hidden, c.d_model, format, kernels), Linear(c.expert_hidden, c.d_model, format, kernels),
                                 Linear(c.d_model, c.expert_hidden, format, kernels)});
      if (c.shared_expert_hidden > 0)
        layer.shared = {Linear(c.shared_expert_hidden, c.d_model, format, kernels),
                        Linear(c.shared_expert_hidden, c.d_model, format, kernels),
                        Linear(c.d_model, c.shared_expert_hidden, format, kernels)};
    } else {
      layer.gate_proj = Linear(c.mlp_hidden, c.d_model, format, kernels);
      layer.up_proj = Linear(c.mlp_hidden, c.d_model, format, kernels);
      layer.down_proj = Linear(c.d_model, c.mlp_hidden, format, kernels);
    }
    layers.push_back(std::move(layer));
  }
  // The head decides between tokens: it keeps 8 bits.
  head = Linear(c.vocabulary, c.d_model, format.quantized() ? WeightFormat(DType::int8, format.group) : format, kernels);
}

template <class F>
void LayerWeights::vectors(const ModelConfig& c, const F& f) {
  f(attn_norm, c.d_model);
  f(mlp_norm, c.d_model);
  if (c.routing == Routing::sigmoid && !experts.empty()) f(router_bias, c.experts);
  if (c.qk_norm) {
    f(q_norm, c.head_dim);
    f(k_norm, c.head_dim);
  }
  if (c.qkv_bias) {
    f(q_bias, c.heads * c.head_dim);
    f(k_bias, c.kv_heads * c.head_dim);
    f(v_bias, c.kv_heads * c.head_dim);
  }
}

template <class F>
void LayerWeights::matrices(const F& f) {
  for (Linear* m : {&q_proj, &k_proj, &v_proj, &o_proj}) f(*m);
  if (experts.empty()) {
    for (Linear* m : {&gate_proj, &up_proj, &down_proj}) f(*m);
    return;
  }
  f(router);
  const auto expert = [&](Expert& e) {
    for (Linear* m : {&e.gate_proj, &e.up_proj, &e.down_proj}) f(*m);
  };
  for (Expert& e : experts) expert(e);
  if (shared.gate_proj.channels() > 0) expert(shared);
}

template <class F>
void Weights::visit(const F& f) {
  const auto vector = [&](AlignedArray<float>& v, int64_t width) { f(v, width * static_cast<int64_t>(sizeof(float))); };
  if (!tied) embedding.visit(f);
  for (LayerWeights& l : layers) {
    l.vectors(config_, vector);
    l.matrices([&](Linear& m) { m.visit(f); });
  }
  vector(final_norm, config_.d_model);
  head.visit(f);
}

int64_t Weights::arena_bytes() {
  int64_t sum = 0;
  visit([&](const auto&, int64_t bytes) {
    if (round_up(bytes, kLine) > std::numeric_limits<int64_t>::max() - sum) throw std::bad_alloc();
    sum += round_up(bytes, kLine);
  });
  return sum;
}

void Weights::place(char* begin) {
  visit([&](auto& array, int64_t bytes) {
    array.view(begin, bytes);
    begin += round_up(bytes, kLine);
  });
}

void Weights::allocate() {
#ifdef LLADA_ADDRESS_SANITIZER  // which sees the ends of arrays that have memory of their own
  visit([](auto& array, int64_t bytes) { array.allocate(bytes); });
#else
  memory.allocate(arena_bytes());
  place(memory.data());
#endif
  for (LayerWeights& l : layers) l.matrices([](Linear& m) { m.clear(); });
  head.clear();
}

// A file: magic, length of the tag, tag; then, each at a multiple of kPage or kLine, the arrays; the magic again. The end is written
// last, so a file without it was not finished.
void Weights::save(const std::string& path, const std::string& tag) {
  std::ofstream out(std::filesystem::u8path(path), std::ios::binary | std::ios::trunc);
  const uint64_t length = tag.size();
  out.write(kMagic, sizeof kMagic);
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out.write(tag.data(), static_cast<std::streamsize>(length));
  int64_t at = static_cast<int64_t>(sizeof kMagic + sizeof length + length);
  const auto pad = [&](int64_t multiple) {
    static const char zeros[kPage] = {};
    const int64_t next = round_up(at, multiple);
    out.write(zeros, next - at);
    at = next;
  };
  pad(kPage);
  visit([&](const auto& array, int64_t bytes) {
    out.write(reinterpret_cast<const char*>(array.data()), bytes);
    at += bytes;
    pad(kLine);
  });
  out.write(kMagic, sizeof kMagic);
  out.close();
  if (!out) throw std::runtime_error(path + ": cannot be written");
}

void Weights::map(const std::string& path, const std::string& tag) {
  auto mapped = std::make_unique<MappedFile>(path);
  const char* data = mapped->data();
  const int64_t size = mapped->size();
  uint64_t length = 0;
  const int64_t at = static_cast<int64_t>(sizeof kMagic + sizeof length);
  if (size < at || std::memcmp(data, kMagic, sizeof kMagic) != 0) throw std::invalid_argument(path + ": is no file of packed weights");
  std::memcpy(&length, data + sizeof kMagic, sizeof length);
  if (length != tag.size() || size < at + static_cast<int64_t>(length) || std::memcmp(data + at, tag.data(), length) != 0)
    throw std::invalid_argument(path + ": was packed from other weights, or for another build of the kernels");
  const int64_t begin = round_up(at + static_cast<int64_t>(length), kPage);
  const int64_t end = begin + arena_bytes();
  if (size != end + static_cast<int64_t>(sizeof kMagic) || std::memcmp(data + end, kMagic, sizeof kMagic) != 0)
    throw std::invalid_argument(path + ": is not whole: expected " + std::to_string(end + static_cast<int64_t>(sizeof kMagic)) +
                                " bytes, found " + std::to_string(size));
  place(const_cast<char*>(data) + begin);  // mapped read-only: `load` refuses to write
  file = std::move(mapped);
}

LayerWeights& Weights::layer_of(int64_t layer) {
  if (layer < 0 || layer >= static_cast<int64_t>(layers.size()))
    throw std::invalid_argument("layer " + std::to_string(layer) + " of a model that has " + std::to_string(layers.size()));
  return layers[static_cast<size_t>(layer)];
}

Expert& Weights::expert_of(int64_t layer, int64_t expert) {
  std::vector<Expert>& experts = layer_of(layer).experts;
  if (expert < 0 || expert >= static_cast<int64_t>(experts.size()))
    throw std::invalid_argument("expert " + std::to_string(expert) + " of layer " + std::to_string(layer) + ", which has " +
                                std::to_string(experts.size()));
  return experts[static_cast<size_t>(expert)];
}

Linear* Weights::matrix(Tensor tensor, int64_t layer, int64_t expert) {
  switch (tensor) {
    case Tensor::embedding: return tied ? &head : nullptr;
    case Tensor::head:
      if (tied) throw std::invalid_argument("a tied model has no head of its own");
      return &head;
    case Tensor::q_proj: return &layer_of(layer).q_proj;
    case Tensor::k_proj: return &layer_of(layer).k_proj;
    case Tensor::v_proj: return &layer_of(layer).v_proj;
    case Tensor::o_proj: return &layer_of(layer).o_proj;
    case Tensor::gate_proj: return &layer_of(layer).gate_proj;
    case Tensor::up_proj: return &layer_of(layer).up_proj;
    case Tensor::down_proj: return &layer_of(layer).down_proj;
    case Tensor::router: return &layer_of(layer).router;
    case Tensor::expert_gate_proj: return &expert_of(layer, expert).gate_proj;
    case Tensor::expert_up_proj: return &expert_of(layer, expert).up_proj;
    case Tensor::expert_down_proj: return &expert_of(layer, expert).down_proj;
    case Tensor::shared_gate_proj: return &layer_of(layer).shared.gate_proj;
    case Tensor::shared_up_proj: return &layer_of(layer).shared.up_proj;
    case Tensor::shared_down_proj: return &layer_of(layer).shared.down_proj;
    default: return nullptr;
  }
}

void Weights::load(Team& team, Tensor tensor, int64_t layer, int64_t begin, int64_t rows, const void* data, DType dtype,
                   int64_t expert) {
  if (dtype != DType::float32 && dtype != DType::float16 && dtype != DType::bfloat16)
    throw std::invalid_argument("dtype: expected float32, float16 or bfloat16 numbers, found another format");
  if (Linear* m = matrix(tensor, layer, expert)) {
    check_rows(begin, rows, m->channels());
    return m->load(team, begin, rows, data, dtype);
  }
  switch (tensor) {
    case Tensor::embedding:
      check_rows(begin, rows, head.channels());
      return embedding.load(team, begin, rows, data, dtype);
    case Tensor::final_norm: return load_vector(final_norm, begin, rows, data, dtype);
    case Tensor::attn_norm: return load_vector(layer_of(layer).attn_norm, begin, rows, data, dtype);
    case Tensor::mlp_norm: return load_vector(layer_of(layer).mlp_norm, begin, rows, data, dtype);
    case Tensor::q_norm: return load_vector(layer_of(layer).q_norm, begin, rows, data, dtype);
    case Tensor::k_norm: return load_vector(layer_of(layer).k_norm, begin, rows, data, dtype);
    case Tensor::router_bias: return load_vector(layer_of(layer).router_bias, begin, rows, data, dtype);
    case Tensor::q_bias: return load_vector(layer_of(layer).q_bias, begin, rows, data, dtype);
    case Tensor::k_bias: return load_vector(layer_of(layer).k_bias, begin, rows, data, dtype);
    case Tensor::v_bias: return load_vector(layer_of(layer).v_bias, begin, rows, data, dtype);
    default: throw std::invalid_argument("unknown tensor " + std::to_string(static_cast<int>(tensor)));
  }
}

bool Weights::load_integers(Team& team, Tensor tensor, int64_t layer, int64_t begin, int64_t rows, const int8_t* values,
                            const float* scales, int group, int64_t expert) {
  Linear* m = matrix(tensor, layer, expert);
  if (m == nullptr) return false;
  check_rows(begin, rows, m->channels());
  return m->load_integers(team, begin, rows, values, scales, group);
}

int64_t Weights::columns(Tensor tensor, int64_t layer, int64_t expert) {
  if (const Linear* m = matrix(tensor, layer, expert)) return m->depth();
  return tensor == Tensor::embedding ? config_.d_model : 1;
}

int64_t Weights::bytes() {
  int64_t total = 0;
  visit([&](const auto& array, int64_t) { total += array.size() * static_cast<int64_t>(sizeof(array[0])); });
  return total;
}

}  // namespace llada
