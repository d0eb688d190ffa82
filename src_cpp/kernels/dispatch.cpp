#include "kernels/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "base/cpu_features.h"
#include "llada/runtime.h"

namespace llada {

namespace {

struct Build {
  const KernelTable* table;
  bool supported;
};

// Slowest first.
std::vector<Build> builds() {
  std::vector<Build> all{{&kScalarKernels, true}};
#ifdef LLADA_X86_KERNELS
  all.push_back({&kAvx2Kernels, cpu_features().avx2_fma_f16c});
  all.push_back({&kAvxVnniKernels, cpu_features().avx_vnni});
  all.push_back({&kAvx512Kernels, cpu_features().avx512});
  all.push_back({&kAvx512VnniKernels, cpu_features().avx512_vnni});
  // AMD's: on Emerald Rapids vdpbf16ps takes twice as long as the two multiply-adds that it stands for.
  all.push_back({&kAvx512Bf16Kernels, cpu_features().avx512_amd});
#endif
#ifdef LLADA_AMX_KERNELS
  all.push_back({&kAvx512AmxKernels, cpu_features().avx512_amx});
#endif
#ifdef LLADA_ARM_KERNELS
  all.push_back({&kNeonKernels, true});  // a part of aarch64
  all.push_back({&kNeonDotKernels, cpu_features().dotprod});
#endif
  return all;
}

std::string listed(bool supported_only) {
  std::string names;
  for (const Build& b : builds())
    if (b.supported || !supported_only) names += (names.empty() ? "" : ", ") + std::string(b.table->name);
  return names;
}

}  // namespace

std::vector<Isa> compiled_isas() {
  std::vector<Isa> isas;
  for (const Build& b : builds()) isas.push_back({b.table->name, b.supported});
  return isas;
}

const KernelTable& kernels_for(const std::string& isa) {
  for (const Build& b : builds()) {
    if (isa != b.table->name) continue;
    if (!b.supported)
      throw std::invalid_argument("instruction set '" + isa + "': this processor lacks it; it can run: " + listed(true));
    return *b.table;
  }
  throw std::invalid_argument("instruction set '" + isa + "' is not in this build; it has: " + listed(false));
}

std::string active_isa() {
  if (const char* forced = std::getenv("LLADA_ISA")) {
    try {
      if (*forced) return kernels_for(forced).name;
    } catch (const std::invalid_argument& e) {
      throw std::invalid_argument(std::string("LLADA_ISA: ") + e.what());
    }
  }
  std::string fastest;
  for (const Build& b : builds())
    if (b.supported) fastest = b.table->name;
  return fastest;
}

}  // namespace llada
