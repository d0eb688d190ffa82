#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#define LLADA_VNNI 1
#include "kernels/vec_avx512.h"

#include "kernels/quantized-inl.h"

namespace llada {

const KernelTable kAvx512VnniKernels = make_table("avx512vnni");

}  // namespace llada
