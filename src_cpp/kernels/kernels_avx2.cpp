#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#include "kernels/vec_avx2.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kAvx2Kernels = make_table("avx2");

}  // namespace llada
