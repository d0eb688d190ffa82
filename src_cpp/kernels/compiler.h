// What a kernel tells the compiler beside its code. Results are the same without.
#pragma once

// LLADA_UNROLL(n) before a loop of at most n rounds: all of them one after the other, which was measured to be better than what GCC chooses,
// and Clang, which leaves the sums of a tile in memory.
#define LLADA_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define LLADA_UNROLL(times) LLADA_PRAGMA(clang loop unroll(full))
#elif defined(__GNUC__)
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
