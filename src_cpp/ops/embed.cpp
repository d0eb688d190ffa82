#include "ops/embed.h"

#include "ops/convert.h"

namespace llada {

void Embedding::load(Team& team, int64_t row_begin, int64_t rows, const void* data, DType dtype) {
  const int64_t grain = 1 + 32768 / width_;
  team.split(rows, grain, [&](int64_t begin, int64_t end, int) {
    char* out = data_.data() + (row_begin + begin) * width_ * size_of(dtype_);
    convert_elements(data, dtype, begin * width_, (end - begin) * width_, out, dtype_);
  });
}

void Embedding::row(int64_t token, float* out) const {
  for (int64_t i = 0; i < width_; ++i) out[i] = element(data_.data(), dtype_, token * width_ + i);
}

}  // namespace llada
