#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#define LLADA_VNNI 1
#define LLADA_BF16 1
#define LLADA_WINOGRAD 1
#include "kernels/vec_avx512.h"

#include "kernels/quantized-inl.h"

namespace llada {

namespace {

constexpr KernelTable with_winograd(KernelTable table) {
  table.packed_rows[0] = 40;  // what begins and ends a group takes longer: measured on Zen 4
  table.packed_rows[1] = table.packed_rows[2] = 12;
  table.gemm_winograd_u4 = gemm_winograd_u4;
  return table;
}

}  // namespace

const KernelTable kAvx512Bf16Kernels = with_winograd(make_table("avx512bf16"));

}  // namespace llada
