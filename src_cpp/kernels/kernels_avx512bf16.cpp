#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#define LLADA_VNNI 1
#define LLADA_BF16 1
#define LLADA_WINOGRAD 1
#include "kernels/vec_avx512.h"

#include "kernels/quantized-inl.h"

namespace llada {

namespace {

// On Emerald Rapids vdpbf16ps takes twice as long as the two multiply-adds that it stands for.
constexpr KernelTable without_bf16(KernelTable table) {
  table.gemm_bf16 = nullptr;
  return table;
}

constexpr KernelTable with_winograd(KernelTable table) {
  table.packed_rows[0] = 40;  // what begins and ends a group takes longer: measured on Zen 4
  table.packed_rows[1] = table.packed_rows[2] = 12;
  table.gemm_winograd_u4 = gemm_winograd_u4;
  return table;
}

}  // namespace

const KernelTable kAvx512Bf16Kernels = without_bf16(make_table("avx512bf16"));
const KernelTable kAvx512Bf16AmdKernels = with_winograd(make_table("avx512bf16"));

}  // namespace llada
