#include "base/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#define LLADA_X86 1
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace llada {

namespace {

#ifdef LLADA_X86

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#ifdef _MSC_VER
  int v[4];
  __cpuidex(v, static_cast<int>(leaf), static_cast<int>(subleaf));
  r.eax = v[0], r.ebx = v[1], r.ecx = v[2], r.edx = v[3];
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

// Extended control register 0: which register files the operating system saves.
uint64_t xcr0() {
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool bit(uint32_t value, int index) { return (value >> index) & 1; }

// Whether the process may use tile registers, which Linux saves for those alone that have asked. Refused where an alternate signal stack
// has no room for them.
bool may_use_tiles() {
#ifdef __linux__
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

// Bit numbers: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A, CPUID.
CpuFeatures detect() {
  CpuFeatures f;
  const Registers one = cpuid(1, 0);
  const bool osxsave = bit(one.ecx, 27);
  if (!osxsave) return f;
  const uint64_t saved = xcr0();
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6;
  const Registers seven = cpuid(7, 0);
  f.avx2_fma_f16c = ymm && bit(one.ecx, 28) && bit(one.ecx, 12) && bit(one.ecx, 29) && bit(seven.ebx, 5);
  f.avx512 = f.avx2_fma_f16c && zmm && bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 28) && bit(seven.ebx, 30) &&
             bit(seven.ebx, 31);
  f.avx512_vnni = f.avx512 && bit(seven.ecx, 11);
  f.avx512_bf16 = f.avx512_vnni && seven.eax >= 1 && bit(cpuid(7, 1).eax, 5);
  const Registers vendor = cpuid(0, 0);
  const bool amd = vendor.ebx == 0x68747541 && vendor.edx == 0x69746e65 && vendor.ecx == 0x444d4163;  // "Auth", "enti", "cAMD"
  f.avx512_amd = f.avx512_bf16 && amd && bit(seven.ecx, 8);
  const bool tiles = bit(seven.edx, 22) && bit(seven.edx, 24) && bit(seven.edx, 25) && (saved >> 17 & 3) == 3;
  f.avx512_amx = f.avx512_bf16 && tiles && may_use_tiles();
  f.avx_vnni = f.avx2_fma_f16c && seven.eax >= 1 && bit(cpuid(7, 1).eax, 4);
  return f;
}

#elif defined(__aarch64__) && defined(__linux__)

CpuFeatures detect() {
  // HWCAP_ASIMDDP of Linux, arch/arm64/include/uapi/asm/hwcap.h; the C libraries of older systems do not name it.
  constexpr unsigned long kDotProduct = 1ul << 20;
  CpuFeatures f;
  f.dotprod = getauxval(AT_HWCAP) & kDotProduct;
  return f;
}

#elif defined(__aarch64__) && defined(__APPLE__)

CpuFeatures detect() {
  CpuFeatures f;
  int value = 0;
  size_t size = sizeof value;
  f.dotprod = sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &size, nullptr, 0) == 0 && value != 0;
  return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace llada
