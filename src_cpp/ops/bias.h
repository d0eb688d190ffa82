// Vectors added to rows.
#pragma once

#include "ops/linear.h"

namespace llada {

// x += bias, in place; bias [width], or empty for none.
void add_bias(Team& team, Rows x, int64_t rows, const AlignedArray<float>& bias);

}  // namespace llada
