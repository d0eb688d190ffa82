// What the processor can run and the operating system saves across context switches.
#pragma once

namespace llada {

struct CpuFeatures {
  bool avx2_fma_f16c = false;
  bool avx_vnni = false;     // the VEX form, for processors without AVX-512
  bool avx512 = false;       // F, CD, BW, DQ, VL
  bool avx512_vnni = false;  // those and VNNI
  bool avx512_bf16 = false;  // those and BF16
  bool avx512_amd = false;   // those and GFNI, of AMD (Zen 4, Zen 5): twice as many execution ports add bytes as multiply them
  bool avx512_amx = false;   // those of avx512_bf16 and the tile registers of AMX, for bytes and bfloat16, which the process may use
  bool dotprod = false;      // aarch64: SDOT and UDOT
};

const CpuFeatures& cpu_features();

}  // namespace llada
