#include "ops/convert.h"

#include <cstdio>
#include <stdexcept>

namespace llada {

namespace {

// Formats that the compiler knows: it makes vectors of what a loop does for one pair of them.
template <DType From, DType To>
void convert_all(const char* data, int64_t count, void* out) {
  for (int64_t i = 0; i < count; ++i) store_element(out, To, i, element(data, From, i));
}

template <DType From>
void convert_from(const char* data, int64_t count, void* out, DType to) {
  if (to == DType::float32) convert_all<From, DType::float32>(data, count, out);
  else if (to == DType::float16) convert_all<From, DType::float16>(data, count, out);
  else if (to == DType::bfloat16) convert_all<From, DType::bfloat16>(data, count, out);
  else convert_all<From, DType::bfloat16_fast>(data, count, out);
}

}  // namespace

void convert_elements(const void* data, DType from, int64_t begin, int64_t count, void* out, DType to) {
  const char* first = static_cast<const char*>(data) + begin * size_of(from);
  if (from == to) std::memcpy(out, first, static_cast<size_t>(count * size_of(to)));
  else if (from == DType::float32) convert_from<DType::float32>(first, count, out, to);
  else if (from == DType::float16) convert_from<DType::float16>(first, count, out, to);
  else convert_from<DType::bfloat16>(first, count, out, to);
}

void throw_beyond(const char* format, float most, float value) {
  char message[128];
  std::snprintf(message, sizeof message, "expected at most %.9g in magnitude for %s, found %.9g; bfloat16 and float32 reach further",
                static_cast<double>(most), format, static_cast<double>(value));
  throw std::out_of_range(message);
}

}  // namespace llada
