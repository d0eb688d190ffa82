// The arguments of a call of the C interface, checked under their names there, as a RaggedBatch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llada/llada.h"
#include "llada/model.h"

struct LLaDAModel {
  LLaDAModel(const LLaDAMeta& meta, const llada::ModelConfig& config, const llada::WeightFormat& format, int threads);

  const LLaDAMeta meta;
  const llada::WeightFormat format;
  llada::Model model;
};

struct LLaDAKVCache {
  explicit LLaDAKVCache(const LLaDAModel& owner) : cache(owner.model) {}

  llada::KVCache cache;
};

namespace llada {

struct RequestArrays {
  const uint32_t* tokens;
  uint32_t ntok;
  const uint32_t* req_lens;
  uint32_t nreq;
  const uint32_t* req_pos;
  LLaDAKVCache* const* kv_caches;
};

class Batch {
 public:
  // Throws std::invalid_argument. That caches belong to the model and differ is for Model::forward to check.
  Batch(const LLaDAModel& model, const RequestArrays& arrays);

  void select(int32_t row) { rows_.push_back(row); }  // in ascending order
  const std::vector<int32_t>& rows() const { return rows_; }

  // hidden[rows(), d_model]
  std::vector<float> forward(const Model& model) const;

 private:
  std::vector<int32_t> tokens_, lengths_, positions_, rows_;
  std::vector<KVCache*> caches_;  // [requests], null without one
};

std::string entry(const char* name, uint32_t i);

// Throws std::invalid_argument for NULL.
void require(const void* pointer, const std::string& name);

}  // namespace llada
