#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace llada {

namespace {

// Copies the first `keys` positions, `width` bytes each, of every head of every layer from one capacity to another.
void copy_heads(const char* from, int64_t from_capacity, char* to, int64_t to_capacity, int64_t heads, int64_t width, int64_t keys) {
  for (int64_t h = 0; h < heads; ++h)
    std::memcpy(to + h * to_capacity * width, from + h * from_capacity * width, static_cast<size_t>(keys * width));
}

}  // namespace

void KVCache::Impl::reserve(int64_t keys) {
  if (keys <= capacity) return;
  const int64_t larger = round_up(std::max(keys, capacity + capacity / 2), kKeyBlock), size = size_of(dtype);
  AlignedArray<char> k_new(layers * larger * k_width(shape) * size), v_new(layers * larger * v_width(shape, panel) * size);
  if (length > 0) {
    const int64_t heads = layers * shape.kv_heads;
    copy_heads(k.data(), capacity, k_new.data(), larger, heads, shape.head_dim * size, round_up(length, panel));
    copy_heads(v.data(), capacity, v_new.data(), larger, heads, round_up(shape.head_dim, panel) * size, length);
  }
  k = std::move(k_new);
  v = std::move(v_new);
  capacity = larger;
}

KVCache::~KVCache() = default;

DType KVCache::dtype() const { return impl_->dtype; }

int64_t KVCache::length() const { return impl_->length; }

void KVCache::truncate(int64_t length) {
  if (length < 0 || length > impl_->length)
    throw std::invalid_argument("length: expected 0 to " + std::to_string(impl_->length) + ", found " + std::to_string(length));
  impl_->length = length;
}

int64_t KVCache::bytes() const { return impl_->k.size() + impl_->v.size(); }

int64_t KVCache::bytes_per_token() const {
  return impl_->layers * (k_width(impl_->shape) + v_width(impl_->shape, impl_->panel)) * size_of(impl_->dtype);
}

}  // namespace llada
