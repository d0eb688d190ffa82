// Types shared by every rung of the library.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace llada {

enum class DType : int32_t { float32 = 0, bfloat16 = 1, float16 = 2 };

inline int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// Thrown when a caller's Interrupt asks a computation to stop.
struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("the computation was cancelled") {}
};

// Asked every few milliseconds by the thread that called into the library; true stops the computation with Cancelled.
struct Interrupt {
  bool (*poll)(void* context) = nullptr;
  void* context = nullptr;
};

}  // namespace llada
