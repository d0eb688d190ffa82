// The C interface: checks arguments, turns exceptions into codes, and leaves the work to the library.
#include "llada/llada.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "c_api/batch.h"
#include "c_api/draw.h"
#include "c_api/machine.h"
#include "checkpoint/errors.h"
#include "checkpoint/folder.h"
#include "kernels/dispatch.h"
#include "kernels/table.h"

namespace {

using llada::Batch;
using llada::DType;
using llada::Model;
using llada::ModelConfig;
using llada::Tensor;
using llada::UnsupportedError;
using llada::WeightFormat;
using llada::entry;
using llada::require;

constexpr uint32_t kLargestDimension = 1 << 24, kLargestLayers = 1 << 12;
constexpr double kLargestNumber = 1e30;
constexpr int64_t kHeadRows = 32;  // rows of logits held at a time
constexpr double kGiB = 1 << 30;

struct NotFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct NotEnoughMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- the last error of each thread: plain memory, so that reporting cannot fail

thread_local LLaDAStatus last_status = LLADA_OK;
thread_local char last_error[2048] = "";

LLaDAStatus report(LLaDAStatus status, const char* message) noexcept {
  last_status = status;
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

// Runs a body; what it throws becomes the last status.
template <class Body>
LLaDAStatus guarded(const Body& body) noexcept {
  try {
    body();
    return report(LLADA_OK, "");
  } catch (const std::invalid_argument& e) {
    return report(LLADA_INVALID_ARGUMENT, e.what());
  } catch (const NotEnoughMemory& e) {
    return report(LLADA_OUT_OF_MEMORY, e.what());
  } catch (const std::bad_alloc&) {
    return report(LLADA_OUT_OF_MEMORY, "an allocation failed");
  } catch (const std::length_error&) {  // of a standard container
    return report(LLADA_OUT_OF_MEMORY, "an allocation failed");
  } catch (const UnsupportedError& e) {
    return report(LLADA_UNSUPPORTED, e.what());
  } catch (const llada::FormatError& e) {
    return report(LLADA_BAD_FILE, e.what());
  } catch (const NotFinite& e) {
    return report(LLADA_NOT_FINITE, e.what());
  } catch (const std::exception& e) {
    return report(LLADA_INTERNAL, e.what());
  } catch (...) {
    return report(LLADA_INTERNAL, "an unknown exception");
  }
}

// ---- models

void check_device(LLaDADevice device, int ndev, const int* dev_ids) {
  static const char* const names[] = {"CPU", "NVIDIA", "CAMBRICON", "ASCEND", "METAX", "MOORE", "ILUVATAR", "KUNLUN", "HYGON"};
  if (device < 0 || device > LLADA_HYGON) throw UnsupportedError("device: expected LLADA_CPU (0), found " + std::to_string(device));
  if (device != LLADA_CPU) throw UnsupportedError(std::string("device: this build runs on the CPU only, found ") + names[device]);
  if (ndev != 1)
    throw std::invalid_argument("ndev: expected 1, found " + std::to_string(ndev) + "; lladaSetThreads sets how many cores are used");
  if (dev_ids && dev_ids[0] != 0) throw std::invalid_argument("dev_ids[0]: expected 0, found " + std::to_string(dev_ids[0]));
}

const char* const kDTypes[] = {"float32", "bfloat16", "float16", "int8", "int4", "bfloat16_fast"};

void check_dtype(const char* name, LLaDADType dtype, LLaDADType largest, const char* expected) {
  if (dtype >= 0 && dtype <= largest) return;
  const bool known = dtype >= 0 && dtype <= LLADA_BFLOAT16_FAST;
  throw UnsupportedError(std::string(name) + ": expected " + expected + ", found " + (known ? kDTypes[dtype] : std::to_string(dtype)));
}

void check_format(const char* name, LLaDADType dtype) {
  check_dtype(name, dtype, LLADA_BFLOAT16_FAST, "float32, bfloat16, float16, int8, int4 or bfloat16_fast");
}

WeightFormat format_of(LLaDADType dtype, uint32_t group_size) {
  if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128)
    throw std::invalid_argument("group_size: expected 32, 64 or 128, or 0 for " + std::to_string(LLADA_DEFAULT_GROUP_SIZE) + ", found " +
                                std::to_string(group_size));
  return WeightFormat(static_cast<DType>(dtype), group_size == 0 ? LLADA_DEFAULT_GROUP_SIZE : static_cast<int>(group_size));
}

void check_meta(const LLaDAMeta& m) {
  check_format("meta.dtype", m.dtype);
  check_dtype("meta.weights_dtype", m.weights_dtype, LLADA_FLOAT16, "float32, bfloat16 or float16");
  const auto within = [](const std::string& name, uint32_t value, uint32_t most) {
    if (value < 1 || value > most)
      throw std::invalid_argument("meta." + name + ": expected 1 to " + std::to_string(most) + ", found " + std::to_string(value));
  };
  within("layers", m.layers, kLargestLayers);
  within("d_model", m.d_model, kLargestDimension);
  within("heads", m.heads, kLargestDimension);
  within("kv_heads", m.kv_heads, kLargestDimension);
  within("head_dim", m.head_dim, llada::kMaxHeadDim);
  within("mlp_hidden", m.mlp_hidden, kLargestDimension);
  within("vocabulary", m.vocabulary, kLargestDimension);
  within("max_tokens", m.max_tokens, kLargestDimension);
  if (m.heads % m.kv_heads != 0)
    throw std::invalid_argument("meta.kv_heads: expected a divisor of meta.heads (" + std::to_string(m.heads) + "), found " +
                                std::to_string(m.kv_heads));
  if (m.mask_token >= m.vocabulary && m.mask_token != LLADA_NONE)
    throw std::invalid_argument("meta.mask_token: expected LLADA_NONE or a token below " + std::to_string(m.vocabulary) + ", found " +
                                std::to_string(m.mask_token));
  if (m.tied_head != 0 && m.tied_head != 1)
    throw std::invalid_argument("meta.tied_head: expected 0 or 1, found " + std::to_string(m.tied_head));
  for (const auto& [name, value] : {std::pair<const char*, double>{"norm_eps", m.norm_eps}, {"rope_theta", m.rope_theta}})
    if (!(value > 0 && value <= kLargestNumber))
      throw std::invalid_argument(std::string("meta.") + name + ": expected a number above 0 and up to 1e30, found " +
                                  std::to_string(value));
}

ModelConfig config_of(const LLaDAMeta& m) {
  ModelConfig c;
  c.layers = m.layers, c.d_model = m.d_model, c.heads = m.heads, c.kv_heads = m.kv_heads, c.head_dim = m.head_dim;
  c.mlp_hidden = m.mlp_hidden, c.vocabulary = m.vocabulary;
  c.norm_eps = m.norm_eps, c.rope_theta = m.rope_theta, c.tied_head = m.tied_head == 1;
  return c;
}

LLaDAMeta meta_of(const llada::FolderConfig& f, DType dtype) {
  const ModelConfig& c = f.model;
  LLaDAMeta m{};
  m.dtype = m.weights_dtype = static_cast<LLaDADType>(dtype);
  m.layers = static_cast<uint32_t>(c.layers), m.d_model = static_cast<uint32_t>(c.d_model);
  m.heads = static_cast<uint32_t>(c.heads), m.kv_heads = static_cast<uint32_t>(c.kv_heads);
  m.head_dim = static_cast<uint32_t>(c.head_dim), m.mlp_hidden = static_cast<uint32_t>(c.mlp_hidden);
  m.vocabulary = static_cast<uint32_t>(c.vocabulary), m.max_tokens = static_cast<uint32_t>(f.max_tokens);
  m.mask_token = static_cast<uint32_t>(f.mask_token.value_or(LLADA_NONE));
  m.norm_eps = c.norm_eps, m.rope_theta = c.rope_theta, m.tied_head = c.tied_head;
  return m;
}

// Before anything is allocated: a system that promises more memory than it has would end the process later.
void check_memory(const ModelConfig& c, const WeightFormat& format) {
  const double d = static_cast<double>(c.d_model), q = static_cast<double>(c.heads * c.head_dim);
  const double kv = static_cast<double>(c.kv_heads * c.head_dim), mlp = static_cast<double>(c.mlp_hidden);
  const double layers = static_cast<double>(c.layers) * d * (2 * q + 2 * kv + 3 * mlp), table = static_cast<double>(c.vocabulary) * d;
  const double scale = format.quantized() ? 2.0 / format.group : 0;  // bytes of scales a weight
  const double floats = format.dtype == DType::float32 ? 4 : 2;
  const double layer = format.quantized() ? (format.dtype == DType::int4 ? 0.5 : 1) + scale : floats;
  const double head = format.quantized() ? 1 + scale : floats;
  const double need = layers * layer + table * (head + (c.tied_head ? 0 : floats));
  const auto have = llada::available_memory();
  if (!have || need <= *have) return;
  char message[128];
  std::snprintf(message, sizeof message, "the weights need %.1f GiB as %s, and %.1f GiB are available", need / kGiB,
                kDTypes[static_cast<int>(format.dtype)], *have / kGiB);
  throw NotEnoughMemory(message);
}

std::unique_ptr<LLaDAModel> new_model(const LLaDAMeta& meta, const WeightFormat& format, int threads) {
  const ModelConfig config = config_of(meta);
  check_memory(config, format);
  return std::make_unique<LLaDAModel>(meta, config, format, threads);
}

struct LayerTensor {
  const char* name;
  const void* const* arrays;  // [layers]
  Tensor tensor;
  int64_t rows;
};

std::vector<LayerTensor> layer_tensors(const LLaDAWeights& w, const ModelConfig& c) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return {{"weights.attn_norm", w.attn_norm, Tensor::attn_norm, c.d_model},
          {"weights.q_proj", w.q_proj, Tensor::q_proj, q},
          {"weights.k_proj", w.k_proj, Tensor::k_proj, kv},
          {"weights.v_proj", w.v_proj, Tensor::v_proj, kv},
          {"weights.o_proj", w.o_proj, Tensor::o_proj, c.d_model},
          {"weights.mlp_norm", w.mlp_norm, Tensor::mlp_norm, c.d_model},
          {"weights.gate_proj", w.gate_proj, Tensor::gate_proj, c.mlp_hidden},
          {"weights.up_proj", w.up_proj, Tensor::up_proj, c.mlp_hidden},
          {"weights.down_proj", w.down_proj, Tensor::down_proj, c.d_model}};
}

void check_weights(const LLaDAWeights& w, const ModelConfig& c) {
  require(w.embedding, "weights.embedding");
  require(w.final_norm, "weights.final_norm");
  if (!c.tied_head) require(w.head, "weights.head");
  if (c.tied_head && w.head) throw std::invalid_argument("weights.head: expected NULL for a tied head, found a pointer");
  for (const LayerTensor& t : layer_tensors(w, c)) {
    require(t.arrays, t.name);
    for (uint32_t i = 0; i < c.layers; ++i) require(t.arrays[i], entry(t.name, i));
  }
}

void load_weights(Model& model, const LLaDAWeights& w, DType dtype) {
  const ModelConfig& c = model.config();
  const auto load = [&](const std::string& name, Tensor tensor, int64_t layer, int64_t rows, const void* data) {
    try {
      model.load(tensor, layer, 0, rows, data, dtype);
    } catch (const std::out_of_range& e) {
      throw std::invalid_argument(name + ": " + e.what());
    }
  };
  load("weights.embedding", Tensor::embedding, -1, c.vocabulary, w.embedding);
  load("weights.final_norm", Tensor::final_norm, -1, c.d_model, w.final_norm);
  if (!c.tied_head) load("weights.head", Tensor::head, -1, c.vocabulary, w.head);
  for (const LayerTensor& t : layer_tensors(w, c))
    for (uint32_t i = 0; i < c.layers; ++i) load(entry(t.name, i), t.tensor, i, t.rows, t.arrays[i]);
}

// Without a format, that of the folder.
std::unique_ptr<LLaDAModel> load_folder(const char* folder, int threads, const std::optional<WeightFormat>& format) {
  require(folder, "folder");
  const int wanted = threads == 0 ? llada::default_threads() : threads;
  const llada::Folder source(std::filesystem::u8path(folder));
  const WeightFormat held = format.value_or(source.dtype());
  std::unique_ptr<LLaDAModel> made = new_model(meta_of(source.config(), held.dtype), held, wanted);
  source.load(made->model);
  return made;
}

// ---- rounds of denoising

struct Rules {
  const float* temperature;
  const uint32_t* topk;
  const float* topp;
  llada::Uniform uniform;

  llada::DrawRule of(uint32_t r) const {
    const llada::DrawRule rule{temperature ? temperature[r] : 0.0, topk ? topk[r] : 0, topp ? topp[r] : 1.0};
    if (!(rule.temperature >= 0 && rule.temperature <= kLargestNumber))
      throw std::invalid_argument(entry("temperature", r) + ": expected a number from 0 to 1e30, found " +
                                  std::to_string(rule.temperature));
    if (!(rule.top_p > 0 && rule.top_p <= 1))
      throw std::invalid_argument(entry("topp", r) + ": expected a number above 0 and up to 1, found " + std::to_string(rule.top_p));
    if (rule.temperature > 0 && !uniform.next)
      throw std::invalid_argument("uniform: expected a function, because " + entry("temperature", r) + " is above 0; found NULL");
    return rule;
  }
};

struct Winner {
  uint32_t token = LLADA_NONE, position = LLADA_NONE;
  double confidence = 0;
};

// A row whose token is a mask before the end of the block.
struct OpenRow {
  uint32_t request, position;
};

std::vector<OpenRow> select_open_rows(Batch& batch, const llada::RequestArrays& a, uint32_t mask, const uint32_t* block_ends) {
  std::vector<OpenRow> open;
  uint32_t row = 0;
  for (uint32_t r = 0; r < a.nreq; ++r)
    for (uint32_t i = 0; i < a.req_lens[r]; ++i, ++row) {
      const uint32_t position = (a.req_pos ? a.req_pos[r] : 0) + i;
      if (a.tokens[row] != mask || (block_ends && position >= block_ends[r])) continue;
      batch.select(static_cast<int32_t>(row));
      open.push_back({r, position});
    }
  return open;
}

std::vector<Winner> draw_winners(const Model& model, const std::vector<OpenRow>& open, const std::vector<float>& hidden,
                                 const std::vector<llada::DrawRule>& rules, const llada::Uniform& uniform) {
  const int64_t vocabulary = model.config().vocabulary, d_model = model.config().d_model, rows = static_cast<int64_t>(open.size());
  std::vector<Winner> winners(rules.size());
  std::vector<float> logits(static_cast<size_t>(std::min(rows, kHeadRows) * vocabulary));
  llada::Drawer drawer(vocabulary, llada::kernels_for(model.isa()));
  for (int64_t begin = 0; begin < rows; begin += kHeadRows) {
    const int64_t n = std::min(kHeadRows, rows - begin);
    model.head(hidden.data() + begin * d_model, n, 0, vocabulary, logits.data(), {});
    for (int64_t i = 0; i < n; ++i) {
      const OpenRow& row = open[static_cast<size_t>(begin + i)];
      llada::Drawn drawn;
      if (!drawer.draw(logits.data() + i * vocabulary, rules[row.request], uniform, drawn))
        throw NotFinite("request " + std::to_string(row.request) + ": the logits at position " + std::to_string(row.position) +
                        " are NaN or have no finite value; the model's weights are damaged");
      Winner& best = winners[row.request];
      if (best.position == LLADA_NONE || drawn.confidence > best.confidence) best = {drawn.token, row.position, drawn.confidence};
    }
  }
  return winners;
}

}  // namespace

LLaDAModel* createLLaDAModel(const LLaDAMeta* meta, const LLaDAWeights* weights, LLaDADevice device, int ndev, const int* dev_ids) {
  return createLLaDAModelGrouped(meta, weights, device, ndev, dev_ids, 0);
}

LLaDAModel* createLLaDAModelGrouped(const LLaDAMeta* meta, const LLaDAWeights* weights, LLaDADevice device, int ndev, const int* dev_ids,
                                    uint32_t group_size) {
  std::unique_ptr<LLaDAModel> made;
  const LLaDAStatus status = guarded([&] {
    check_device(device, ndev, dev_ids);
    require(meta, "meta");
    require(weights, "weights");
    check_meta(*meta);
    const WeightFormat format = format_of(meta->dtype, group_size);
    check_weights(*weights, config_of(*meta));
    made = new_model(*meta, format, llada::default_threads());
    load_weights(made->model, *weights, static_cast<DType>(meta->weights_dtype));
  });
  return status == LLADA_OK ? made.release() : nullptr;
}

LLaDAModel* lladaLoadModel(const char* folder, int threads) {
  std::unique_ptr<LLaDAModel> made;
  const LLaDAStatus status = guarded([&] { made = load_folder(folder, threads, std::nullopt); });
  return status == LLADA_OK ? made.release() : nullptr;
}

LLaDAModel* lladaLoadModelAs(const char* folder, int threads, LLaDADType dtype, uint32_t group_size) {
  std::unique_ptr<LLaDAModel> made;
  const LLaDAStatus status = guarded([&] {
    check_format("dtype", dtype);
    made = load_folder(folder, threads, format_of(dtype, group_size));
  });
  return status == LLADA_OK ? made.release() : nullptr;
}

int lladaModelMeta(const LLaDAModel* model, LLaDAMeta* out) {
  return guarded([&] {
    require(model, "model");
    require(out, "out");
    *out = model->meta;
  });
}

uint32_t lladaGroupSize(const LLaDAModel* model) {
  uint32_t group_size = 0;
  guarded([&] {
    require(model, "model");
    if (model->format.quantized()) group_size = static_cast<uint32_t>(model->format.group);
  });
  return group_size;
}

int destroyLLaDAModel(LLaDAModel* model) {
  return guarded([&] { delete model; });
}

int lladaSetThreads(LLaDAModel* model, int threads) {
  return guarded([&] {
    require(model, "model");
    model->model.set_threads(threads);
  });
}

int lladaThreads(const LLaDAModel* model) {
  int threads = 0;
  guarded([&] {
    require(model, "model");
    threads = model->model.threads();
  });
  return threads;
}

LLaDAKVCache* createKVCache(const LLaDAModel* model) {
  std::unique_ptr<LLaDAKVCache> made;
  const LLaDAStatus status = guarded([&] {
    require(model, "model");
    made = std::make_unique<LLaDAKVCache>(*model);
  });
  return status == LLADA_OK ? made.release() : nullptr;
}

int truncateKVCache(LLaDAKVCache* cache, uint32_t length) {
  return guarded([&] {
    require(cache, "cache");
    cache->cache.truncate(length);
  });
}

int dropKVCache(const LLaDAModel* model, LLaDAKVCache* cache) {
  return guarded([&] {
    if (model && cache && !cache->cache.belongs_to(model->model)) throw std::invalid_argument("cache: belongs to another model");
    delete cache;
  });
}

int forwardBatchLLaDA(LLaDAModel* model, const uint32_t* tokens, uint32_t ntok, const uint32_t* req_lens, uint32_t nreq,
                      const uint32_t* req_pos, LLaDAKVCache* const* kv_caches, float* logits) {
  return guarded([&] {
    require(model, "model");
    require(logits, "logits");
    Batch batch(*model, {tokens, ntok, req_lens, nreq, req_pos, kv_caches});
    for (uint32_t i = 0; i < ntok; ++i) batch.select(static_cast<int32_t>(i));
    const std::vector<float> hidden = batch.forward(model->model);
    model->model.head(hidden.data(), ntok, 0, model->meta.vocabulary, logits, {});
  });
}

int inferBatchLLaDA(LLaDAModel* model, const uint32_t* tokens, uint32_t ntok, const uint32_t* req_lens, uint32_t nreq,
                    const uint32_t* req_pos, LLaDAKVCache* const* kv_caches, const float* temperature, const uint32_t* topk,
                    const float* topp, const uint32_t* block_ends, LLaDAUniform uniform, void* uniform_state, uint32_t* output,
                    uint32_t* positions, double* confidence) {
  return guarded([&] {
    require(model, "model");
    require(output, "output");
    require(positions, "positions");
    if (model->meta.mask_token == LLADA_NONE) throw std::invalid_argument("model: expected one with a mask token, found none");
    const llada::RequestArrays arrays{tokens, ntok, req_lens, nreq, req_pos, kv_caches};
    const Rules given{temperature, topk, topp, {uniform, uniform_state}};
    Batch batch(*model, arrays);
    std::vector<llada::DrawRule> rules;
    for (uint32_t r = 0; r < nreq; ++r) rules.push_back(given.of(r));
    const std::vector<OpenRow> open = select_open_rows(batch, arrays, model->meta.mask_token, block_ends);
    const std::vector<float> hidden = batch.forward(model->model);
    const std::vector<Winner> winners = draw_winners(model->model, open, hidden, rules, given.uniform);
    for (uint32_t r = 0; r < nreq; ++r) {
      output[r] = winners[r].token;
      positions[r] = winners[r].position;
      if (confidence) confidence[r] = winners[r].confidence;
    }
  });
}

const char* lladaVersion(void) { return LLADA_VERSION; }
const char* lladaLastError(void) { return last_error; }
int lladaLastStatus(void) { return last_status; }
