// Types shared by every rung of the library.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace llada {

// bfloat16_fast is bfloat16 in memory, and what it is multiplied with is rounded to bfloat16 too; of weights only.
enum class DType : int32_t { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3, int4 = 4, bfloat16_fast = 5 };

// Bytes of an element of the float formats.
inline int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

// How a matrix is held in memory: as floats, or as integers with a float16 scale for every `group` inputs of an output channel.
struct WeightFormat {
  WeightFormat(DType dtype, int group = 128) : dtype(dtype), group(group) {}  // NOLINT: a float format is its dtype
  bool quantized() const { return dtype == DType::int8 || dtype == DType::int4; }
  bool rounds() const { return dtype == DType::bfloat16_fast; }

  DType dtype;
  int group;  // 32, 64 or 128; of no meaning for floats
};

// How a router's logits become the experts of a row and their weights. Of equal scores the lower id goes first, in groups too.
enum class Routing : int32_t {
  softmax,  // the most probable, weighted with their probabilities as they are
  // Scores are the logits' sigmoids plus the router's bias, and only decide: of the groups whose two largest scores have the greatest sums,
  // the experts with the largest. Their weights are their sigmoids, of more than one their shares of the sum, times expert_scale.
  sigmoid,
};

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
