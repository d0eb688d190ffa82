// The comparisons of every file here, each of one build with the scalar one.
#pragma once

#include "kernels/table.h"

namespace cross {

void gemm(const llada::KernelTable& table, const llada::KernelTable& scalar);
void integer_gemms(const llada::KernelTable& table, const llada::KernelTable& scalar);
void elementwise(const llada::KernelTable& table, const llada::KernelTable& scalar);
void attention(const llada::KernelTable& table, const llada::KernelTable& scalar);
void statistics(const llada::KernelTable& table, const llada::KernelTable& scalar);

}  // namespace cross
