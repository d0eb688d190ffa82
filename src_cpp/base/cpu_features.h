// What the processor can run and the operating system saves across context switches.
#pragma once

namespace llada {

struct CpuFeatures {
  bool avx2_fma_f16c = false;
  bool avx_vnni = false;     // the VEX form, for processors without AVX-512
  bool avx512 = false;       // F, CD, BW, DQ, VL
  bool avx512_vnni = false;  // those and VNNI
  bool avx512_bf16 = false;  // those and BF16
  bool zen4 = false;         // those and GFNI, of AMD: vectors are added on twice the execution ports that they are multiplied on
  bool dotprod = false;      // aarch64: SDOT and UDOT
};

const CpuFeatures& cpu_features();

}  // namespace llada
