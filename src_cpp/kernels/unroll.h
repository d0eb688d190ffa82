// LLADA_UNROLL(n) before a loop.
#pragma once

// Unrolled by GCC, whose own choice was measured to be worse; other compilers choose.
#if defined(__GNUC__) && !defined(__clang__)
#define LLADA_PRAGMA(text) _Pragma(#text)
#define LLADA_UNROLL(times) LLADA_PRAGMA(GCC unroll times)
#else
#define LLADA_UNROLL(times)
#endif
