// Keys and values of one request, kept between forward passes.
#pragma once

#include <cstdint>
#include <memory>

#include "llada/types.h"

namespace llada {

class Model;

// Belongs to the model it was made for, and may outlive it. Not thread-safe: one call at a time uses it.
class KVCache {
 public:
  // Keys and values are held as float32, or as float16: half the memory, each rounded to 11 bits when it is stored, infinite from 65520 on.
  explicit KVCache(const Model& model, DType dtype = DType::float32);
  ~KVCache();
  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;

  bool belongs_to(const Model& model) const;
  DType dtype() const;

  // Positions [0, length) hold keys and values.
  int64_t length() const;
  // Forgets positions from `length` on. Throws std::invalid_argument beyond the present length.
  void truncate(int64_t length);

  int64_t bytes() const;            // held now; memory grows with the longest request seen
  int64_t bytes_per_token() const;  // of a full cache

  struct Impl;
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace llada
