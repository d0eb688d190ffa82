#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#include "kernels/vec_scalar.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kScalarKernels = make_table("scalar");

}  // namespace llada
