// Root-mean-square normalisation of rows.
#pragma once

#include "ops/linear.h"

namespace llada {

// out = x / rms(x) * weight
void rms_norm(Team& team, const KernelTable& kernels, Rows x, int64_t rows, const AlignedArray<float>& weight, double eps, Rows out);

}  // namespace llada
