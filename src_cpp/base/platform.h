// What every build takes for granted of its machine, so that others end with a word and not with wrong numbers.
#pragma once

#include <float.h>

static_assert(sizeof(void*) == 8, "expected a 64-bit system: weights are mapped whole");

// x87 registers keep more digits than float32 has, and roundings by adding 1.5 * 2^23 come out differently.
#if defined(FLT_EVAL_METHOD) && (FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2)
#error "expected arithmetic of float32 in float32, such as -mfpmath=sse has it"
#endif

#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "expected a little-endian system: checkpoints are, and are read as they lie"
#endif

// Earlier ones contract multiplications and additions, whatever they are told.
#if defined(_MSC_VER) && !defined(__clang__) && _MSC_VER < 1930
#error "expected Visual Studio 2022 or later"
#endif
