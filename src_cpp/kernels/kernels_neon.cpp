#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#include "kernels/vec_neon.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kNeonKernels = make_table("neon");

}  // namespace llada
