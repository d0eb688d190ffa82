// Activations: rows of floats.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/aligned.h"

namespace llada {

struct Rows {
  float* data;
  ptrdiff_t stride;  // floats from one row to the next
  float* row(int64_t i) const { return data + i * stride; }
};

// Rows a multiple of 4 KiB apart would share their cache sets, so the stride of an activation buffer is odd in cache lines.
constexpr ptrdiff_t row_stride(int64_t width) { return static_cast<ptrdiff_t>(round_up(width, 32) + 16); }

}  // namespace llada
