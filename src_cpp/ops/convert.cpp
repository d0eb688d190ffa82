#include "ops/convert.h"

#include <cstdio>
#include <stdexcept>

namespace llada {

void throw_beyond(const char* format, float most, float value) {
  char message[128];
  std::snprintf(message, sizeof message, "expected at most %.9g in magnitude for %s, found %.9g; bfloat16 and float32 reach further",
                static_cast<double>(most), format, static_cast<double>(value));
  throw std::out_of_range(message);
}

}  // namespace llada
