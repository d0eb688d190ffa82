#include "c_api/batch.h"

#include <stdexcept>

LLaDAModel::LLaDAModel(const LLaDAMeta& meta, const llada::ModelConfig& config, const llada::WeightFormat& format, int threads)
    : meta(meta), format(format), model(config, format, "", threads) {}

namespace llada {

std::string entry(const char* name, uint32_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void require(const void* pointer, const std::string& name) {
  if (!pointer) throw std::invalid_argument(name + ": expected a pointer, found NULL");
}

Batch::Batch(const LLaDAModel& model, const RequestArrays& a) {
  require(a.tokens, "tokens");
  require(a.req_lens, "req_lens");
  if (a.nreq == 0) throw std::invalid_argument("nreq: expected at least 1, found 0");
  uint64_t sum = 0;
  for (uint32_t r = 0; r < a.nreq; ++r) {
    const uint32_t position = a.req_pos ? a.req_pos[r] : 0;
    if (a.req_lens[r] == 0) throw std::invalid_argument(entry("req_lens", r) + ": expected at least 1, found 0");
    KVCache* cache = a.kv_caches && a.kv_caches[r] ? &a.kv_caches[r]->cache : nullptr;
    const int64_t cached = cache ? cache->length() : 0;
    if (position > cached)
      throw std::invalid_argument(entry("req_pos", r) + ": expected 0 to " + std::to_string(cached) + " (what its cache holds), found " +
                                  std::to_string(position));
    const uint64_t end = uint64_t{position} + a.req_lens[r];
    if (end > model.meta.max_tokens)
      throw std::invalid_argument(entry("req_lens", r) + ": expected an end within the model's max_tokens (" +
                                  std::to_string(model.meta.max_tokens) + "), found " + std::to_string(end));
    sum += a.req_lens[r];
    lengths_.push_back(static_cast<int32_t>(a.req_lens[r]));
    positions_.push_back(static_cast<int32_t>(position));
    caches_.push_back(cache);
  }
  if (sum != a.ntok)
    throw std::invalid_argument("ntok: expected the sum of req_lens (" + std::to_string(sum) + "), found " + std::to_string(a.ntok));
  for (uint32_t i = 0; i < a.ntok; ++i) {
    if (a.tokens[i] >= model.meta.vocabulary)
      throw std::invalid_argument(entry("tokens", i) + ": expected 0 to " + std::to_string(model.meta.vocabulary - 1) + ", found " +
                                  std::to_string(a.tokens[i]));
    tokens_.push_back(static_cast<int32_t>(a.tokens[i]));
  }
}

std::vector<float> Batch::forward(const Model& model) const {
  std::vector<float> hidden(rows_.size() * static_cast<size_t>(model.config().d_model));
  RaggedBatch batch{tokens_.data(), lengths_.data(), static_cast<int64_t>(lengths_.size()), rows_.data(),
                    static_cast<int64_t>(rows_.size())};
  batch.positions = positions_.data();
  batch.caches = caches_.data();
  model.forward(batch, hidden.data(), {});
  return hidden;
}

}  // namespace llada
