// Token ids to rows.
#pragma once

#include "ops/linear.h"

namespace llada {

// The embedding matrix [vocabulary, width] as it lies in the checkpoint.
class Embedding {
 public:
  Embedding() = default;
  Embedding(int64_t vocabulary, int64_t width, DType dtype) : vocabulary_(vocabulary), width_(width), dtype_(dtype) {}
  template <class F>
  void visit(const F& f) {
    f(data_, vocabulary_ * width_ * size_of(dtype_));
  }
  void load(Team& team, int64_t row_begin, int64_t rows, const void* data, DType dtype);
  void row(int64_t token, float* out) const;
  int64_t bytes() const { return data_.size(); }

 private:
  int64_t vocabulary_ = 0, width_ = 0;
  DType dtype_ = DType::float32;
  AlignedArray<char> data_;
};

}  // namespace llada
