#include "ops/embed.h"

#include <cstring>

#include "ops/convert.h"

namespace llada {

void Embedding::load(Team& team, int64_t row_begin, int64_t rows, const void* data, DType dtype) {
  const int64_t grain = 1 + 32768 / width_;
  team.split(rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * width_; i < end * width_; ++i) {
      const float value = element(data, dtype, i);
      const int64_t at = row_begin * width_ + i;
      if (dtype_ == DType::float32) {
        std::memcpy(data_.data() + at * 4, &value, 4);
      } else {
        const uint16_t rounded = float_to_bf16(value);
        std::memcpy(data_.data() + at * 2, &rounded, 2);
      }
    }
  });
}

void Embedding::row(int64_t token, float* out) const {
  for (int64_t i = 0; i < width_; ++i) out[i] = element(data_.data(), dtype_, token * width_ + i);
}

}  // namespace llada
