#include "ops/convert.h"

#include <cstdio>
#include <stdexcept>

namespace llada {

void throw_beyond_f16(float value) {
  char message[128];
  std::snprintf(message, sizeof message, "expected at most %.9g in magnitude for float16, found %.9g; bfloat16 and float32 reach further",
                static_cast<double>(kLargestF16), static_cast<double>(value));
  throw std::out_of_range(message);
}

}  // namespace llada
