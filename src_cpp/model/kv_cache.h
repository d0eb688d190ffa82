// The storage behind KVCache: every layer's KeyStore in one pair of arrays.
#pragma once

#include "base/aligned.h"
#include "llada/kv_cache.h"
#include "ops/attention.h"

namespace llada {

struct KVCache::Impl {
  Impl(uint64_t model, int64_t layers, const AttentionShape& shape, int64_t panel)
      : model(model), layers(layers), shape(shape), panel(panel) {}

  // Room for `keys` positions. Strong guarantee: std::bad_alloc leaves the cache as it was.
  void reserve(int64_t keys);
  KeyStore layer(int64_t i);

  const uint64_t model;  // serial number of the model whose keys these are
  const int64_t layers;
  const AttentionShape shape;
  const int64_t panel;
  int64_t length = 0, capacity = 0;
  AlignedArray<float> k, v;  // [layers], each a KeyStore of `capacity` keys
};

}  // namespace llada
