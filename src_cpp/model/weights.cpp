#include "model/weights.h"

#include <stdexcept>
#include <string>

#include "ops/convert.h"

namespace llada {

namespace {

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

void load_matrix(Team& team, Linear& matrix, int64_t begin, int64_t rows, const void* data, DType dtype) {
  check_rows(begin, rows, matrix.channels());
  matrix.load(team, begin, rows, data, dtype);
}

}  // namespace

Weights::Weights(const ModelConfig& c, WeightFormat format, const KernelTable& kernels) : tied(c.tied_head) {
  const int64_t q_width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  if (!tied) embedding = Embedding(c.vocabulary, c.d_model, format.quantized() ? DType::bfloat16 : format.dtype);
  for (int64_t i = 0; i < c.layers; ++i) {
    LayerWeights layer;
    layer.attn_norm = AlignedArray<float>(c.d_model);
    layer.q_proj = Linear(q_width, c.d_model, format, kernels);
    layer.k_proj = Linear(kv_width, c.d_model, format, kernels);
    layer.v_proj = Linear(kv_width, c.d_model, format, kernels);
    layer.o_proj = Linear(c.d_model, q_width, format, kernels);
    layer.mlp_norm = AlignedArray<float>(c.d_model);
    layer.gate_proj = Linear(c.mlp_hidden, c.d_model, format, kernels);
    layer.up_proj = Linear(c.mlp_hidden, c.d_model, format, kernels);
    layer.down_proj = Linear(c.d_model, c.mlp_hidden, format, kernels);
    layers.push_back(std::move(layer));
  }
  final_norm = AlignedArray<float>(c.d_model);
  // The head decides between tokens: it keeps 8 bits.
  head = Linear(c.vocabulary, c.d_model, format.quantized() ? WeightFormat(DType::int8, format.group) : format, kernels);
}

void Weights::load(Team& team, Tensor tensor, int64_t layer, int64_t begin, int64_t rows, const void* data, DType dtype) {
  const bool layered = tensor != Tensor::embedding && tensor != Tensor::final_norm && tensor != Tensor::head;
  if (layered && (layer < 0 || layer >= static_cast<int64_t>(layers.size())))
    throw std::invalid_argument("layer " + std::to_string(layer) + " of a model that has " + std::to_string(layers.size()));
  const auto at = [&]() -> LayerWeights& { return layers[static_cast<size_t>(layer)]; };
  switch (tensor) {
    case Tensor::embedding:
      check_rows(begin, rows, head.channels());
      if (tied) return head.load(team, begin, rows, data, dtype);
      return embedding.load(team, begin, rows, data, dtype);
    case Tensor::head:
      if (tied) throw std::invalid_argument("a tied model has no head of its own");
      return load_matrix(team, head, begin, rows, data, dtype);
    case Tensor::final_norm: return load_vector(final_norm, begin, rows, data, dtype);
    case Tensor::attn_norm: return load_vector(at().attn_norm, begin, rows, data, dtype);
    case Tensor::mlp_norm: return load_vector(at().mlp_norm, begin, rows, data, dtype);
    case Tensor::q_proj: return load_matrix(team, at().q_proj, begin, rows, data, dtype);
    case Tensor::k_proj: return load_matrix(team, at().k_proj, begin, rows, data, dtype);
    case Tensor::v_proj: return load_matrix(team, at().v_proj, begin, rows, data, dtype);
    case Tensor::o_proj: return load_matrix(team, at().o_proj, begin, rows, data, dtype);
    case Tensor::gate_proj: return load_matrix(team, at().gate_proj, begin, rows, data, dtype);
    case Tensor::up_proj: return load_matrix(team, at().up_proj, begin, rows, data, dtype);
    case Tensor::down_proj: return load_matrix(team, at().down_proj, begin, rows, data, dtype);
  }
  throw std::invalid_argument("unknown tensor " + std::to_string(static_cast<int>(tensor)));
}

int64_t Weights::bytes() const {
  int64_t total = embedding.bytes() + head.bytes() + final_norm.size() * 4;
  for (const LayerWeights& l : layers) {
    total += (l.attn_norm.size() + l.mlp_norm.size()) * 4;
    for (const Linear* m : {&l.q_proj, &l.k_proj, &l.v_proj, &l.o_proj, &l.gate_proj, &l.up_proj, &l.down_proj}) total += m->bytes();
  }
  return total;
}

}  // namespace llada
