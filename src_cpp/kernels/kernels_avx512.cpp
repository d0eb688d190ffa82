#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#include "kernels/vec_avx512.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kAvx512Kernels = make_table("avx512");

}  // namespace llada
