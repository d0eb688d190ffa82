#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#define LLADA_VNNI 1
#include "kernels/vec_avx2.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kAvxVnniKernels = make_table("avxvnni");

}  // namespace llada
