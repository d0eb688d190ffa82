// The storage behind KVCache: every layer's KeyStore in one pair of arrays.
#pragma once

#include "base/aligned.h"
#include "llada/kv_cache.h"
#include "ops/attention.h"

namespace llada {

struct KVCache::Impl {
  Impl(uint64_t model, int64_t layers, const AttentionShape& shape, int64_t panel, DType dtype)
      : model(model), layers(layers), shape(shape), panel(panel), dtype(dtype) {}

  // Room for `keys` positions. Strong guarantee: std::bad_alloc leaves the cache as it was.
  void reserve(int64_t keys);
  // T is that of dtype.
  template <class T>
  StoreOf<T> layer(int64_t i) {
    return {reinterpret_cast<T*>(k.data()) + i * capacity * k_width(shape),
            reinterpret_cast<T*>(v.data()) + i * capacity * v_width(shape, panel), capacity};
  }

  const uint64_t model;  // serial number of the model whose keys these are
  const int64_t layers;
  const AttentionShape shape;
  const int64_t panel;
  const DType dtype;  // float32 or float16
  int64_t length = 0, capacity = 0;
  AlignedArray<char> k, v;  // [layers], each a StoreOf the dtype with `capacity` keys
};

}  // namespace llada
