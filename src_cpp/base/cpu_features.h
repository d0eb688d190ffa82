// What the processor can run and the operating system saves across context switches.
#pragma once

namespace llada {

struct CpuFeatures {
  bool avx2_fma_f16c = false;
  bool avx512 = false;  // F, CD, BW, DQ, VL
};

const CpuFeatures& cpu_features();

}  // namespace llada
