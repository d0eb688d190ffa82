// What a kernel tells the compiler beside its code. Results are the same without.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#define LLADA_PRAGMA(text) _Pragma(#text)
// LLADA_UNROLL(n) before a loop: unrolled by GCC, whose own choice was measured to be worse; other compilers choose.
#define LLADA_UNROLL(times) LLADA_PRAGMA(GCC unroll times)
#else
#define LLADA_UNROLL(times)
#endif

// LLADA_FORGET(pointer) keeps its value, and hides from the compiler what it was computed from: it stays in a register of its own.
#if defined(__GNUC__)
#define LLADA_FORGET(pointer) __asm__("" : "+r"(pointer))
#else
#define LLADA_FORGET(pointer)
#endif
