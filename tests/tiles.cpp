// Tile registers of a thread that another library has set up: as they were after products of all formats, and released where they were.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "base/team.h"
#include "kernels/table.h"
#include "ops/linear.h"

using namespace llada;

namespace {

TileSetup setup() {
  TileSetup found;
  __asm__ volatile("sttilecfg %0" : "=m"(found));
  return found;
}

// Two products, the second of which does not fill its last panel.
void multiply(WeightFormat format) {
  constexpr int64_t kChannels = 80, kDepth = 256, kRows = 33;
  Team team(1, {});
  const std::vector<float> weight(kChannels * kDepth, 0.5f);
  std::vector<float> x(kRows * kDepth, 1.0f), out(kRows * kChannels);
  Linear layer(kChannels, kDepth, format, kAvx512AmxKernels);
  layer.allocate();
  layer.load(team, 0, kChannels, weight.data(), DType::float32);
  QuantizedRows quantized;
  linear(team, kAvx512AmxKernels, quantized, {product(layer, {x.data(), kDepth}, kRows, {out.data(), kChannels})});
  for (float value : out)
    if (value < 127 || value > 129) std::printf("a product is %g and not 128\n", value);
}

}  // namespace

int main() {
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 77;
  TileSetup others{};
  others.palette = 1;
  for (int t = 0; t < 8; ++t) others.bytes[t] = 8, others.rows[t] = 3;
  int mistakes = 0;
  for (WeightFormat format : {WeightFormat(DType::int8, 64), WeightFormat(DType::int4, 128), WeightFormat(DType::bfloat16),
                              WeightFormat(DType::bfloat16_fast), WeightFormat(DType::float32)}) {
    __asm__ volatile("ldtilecfg %0" ::"m"(others));
    multiply(format);
    const TileSetup after = setup();
    mistakes += std::memcmp(&after, &others, sizeof after) != 0;
    __asm__ volatile("tilerelease");
    multiply(format);
    mistakes += setup().palette != 0;
  }
  if (mistakes) std::printf("%d of 10 setups were not found again\n", mistakes);
  return mistakes != 0;
}
