#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#define LLADA_VNNI 1
#define LLADA_BF16 1
#include "kernels/vec_avx512.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kAvx512Bf16Kernels = make_table("avx512bf16");

}  // namespace llada
