#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#define LLADA_DOTPROD 1
#include "kernels/vec_neon.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kNeonDotKernels = make_table("neondot");

}  // namespace llada
