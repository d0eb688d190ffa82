// Kernels that go over a row element by element, and the loop that measures the peak of a core.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "check.h"
#include "comparisons.h"

namespace cross {
namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return std::isnan(value) ? 0x7fc00000 : bits;  // a NaN is a NaN
}

float exact_f16(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                     : exponent     ? std::ldexp(1024.0f + static_cast<float>(fraction), exponent - 25)
                                    : std::ldexp(static_cast<float>(fraction), -24);
  return half >> 15 ? -size : size;
}

float exact_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void widen(const KernelTable& table, const char* name, void (*kernel)(const uint16_t*, float*, size_t), float (*exact)(uint16_t)) {
  Check check(table, name);
  for (int n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 65536}) {
    check.at(text({{"n", n}}));
    Buffer<uint16_t> x(n);
    Buffer<float> out(x.size());
    for (int i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(n == 65536 ? i : uniform(0, 65535));
    kernel(x.data(), out.data(), x.size());
    for (int i = 0; i < x.size(); ++i) check.same(i, bits_of(out[i]), bits_of(exact(x[i])));
    check.guards(out);
  }
}

void narrow(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "narrow_f16");
  // Around every float16 and between two: what lies halfway, and its neighbours on both sides.
  constexpr int kHalves = 0x7c02;
  Buffer<float> x(kHalves * 6);
  for (int h = 0; h < kHalves; ++h) {
    const float low = exact_f16(static_cast<uint16_t>(h)), high = h < 0x7bff ? exact_f16(static_cast<uint16_t>(h + 1)) : 65536.0f;
    const float middle = low + (high - low) / 2, each[] = {low, std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)};
    for (int j = 0; j < 4; ++j) x[h * 6 + j] = h % 2 ? -each[j] : each[j];
    x[h * 6 + 4] = h % 2 ? FLT_MAX : -FLT_MAX;
    x[h * 6 + 5] = h % 2 ? 1e-40f : -0.0f;
  }
  for (int n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, x.size()}) {
    check.at(text({{"n", n}}));
    Buffer<uint16_t> found(n), wanted(n);
    table.narrow_f16(x.data(), found.data(), static_cast<size_t>(n));
    scalar.narrow_f16(x.data(), wanted.data(), static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) check.same(i, bits_of(exact_f16(found[i])), bits_of(exact_f16(wanted[i])));
    check.guards(found);
  }
}

// x is the upper half of a float32 and something below it: the nearest bfloat16 is that half or the next.
void round(const KernelTable& table) {
  Check check(table, "round_bf16");
  constexpr int kAll = 4 << 16;
  const uint32_t below[] = {0, 0x7fff, 0x8000, 0x8001};
  for (int n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, kAll}) {
    check.at(text({{"n", n}}));
    Buffer<float> x(n), wanted(n + n % 2), found(n);
    Buffer<uint16_t> pairs(wanted.size(), 7);
    for (int i = 0; i < n; ++i) {
      const uint32_t half = static_cast<uint32_t>(n == kAll ? i / 4 : uniform(0, 0xffff)), bits = half << 16 | below[i % 4];
      std::memcpy(x.data() + i, &bits, 4);
      const float nearest = exact_bf16(static_cast<uint16_t>(half + (below[i % 4] > 0x8000 - half % 2)));
      wanted[i] = std::isnan(x[i]) ? NAN : std::abs(nearest) < FLT_MIN ? std::copysign(0.0f, nearest) : nearest;
    }
    table.round_bf16(x.data(), found.data(), n);
    table.round_pairs(x.data(), pairs.data(), n);
    for (int i = 0; i < n; ++i) check.same(i, bits_of(found[i]), bits_of(wanted[i]));
    for (int i = 0; i < wanted.size(); ++i) check.same(i, bits_of(exact_bf16(pairs[i ^ 1])), bits_of(wanted[i]));
    check.guards(found);
    check.guards(pairs);
  }
}

void rms_norm(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "rms_norm_f32");
  for (const char* fill : kFills)
    for (int n : {1, 3, 4, 5, 15, 16, 17, 31, 64, 65, 100, 128, 4099}) {
      check.at(text({{"n", n}}, fill));
      const Buffer<float> x = filled(fill, n), weight = normals(x.size());
      Buffer<float> found(x.size()), wanted(x.size());
      table.rms_norm_f32(x.data(), weight.data(), found.data(), n, 1e-5f);
      scalar.rms_norm_f32(x.data(), weight.data(), wanted.data(), n, 1e-5f);
      // On each side the sum of squares is a chain of n / 16 + 20 roundings at most, of which the root leaves half; the quotients, the
      // root and two products round 6 times. Underflow of x / root is multiplied by the weight.
      for (int i = 0; i < x.size(); ++i)
        check.near(i, found[i], wanted[i], (n / 32 + 16) * kEpsilon * std::abs(wanted[i]) + 2 * kTiny * (1 + std::abs(weight[i])));
      check.guards(found);
    }
}

void silu(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "silu_mul_f32");
  const float special[] = {0.0f,    -0.0f,  -200.0f,  200.0f,    -1e-30f, 1e-40f,   88.3f, -88.3f,
                           -87.35f, -88.0f, FLT_MAX, -FLT_MAX, NAN,     INFINITY, -INFINITY};
  constexpr int kSpecials = std::size(special);
  for (int n : {1, 2, 3, 4, 5, 7, 8, 15, 16, 19, 20000}) {
    check.at(text({{"n", n}}));
    Buffer<float> found = normals(n, 20);  // the 20000 see every fraction of a power of two
    const Buffer<float> up = normals(found.size());
    for (int i = 0; i < found.size(); ++i)
      if (n > kSpecials ? i < kSpecials : uniform(0, 3) == 0) found[i] = special[n > kSpecials ? i : uniform(0, kSpecials - 1)];
    Buffer<float> wanted = found;
    table.silu_mul_f32(found.data(), up.data(), n);
    scalar.silu_mul_f32(wanted.data(), up.data(), n);
    // On each side the exponential's error reaches the result undiminished at most; sum, quotient and product round three times.
    for (int i = 0; i < found.size(); ++i)
      check.near(i, found[i], wanted[i], 2 * (kExponential + 1.5 * kEpsilon) * std::abs(wanted[i]) + 2 * kTiny * (1 + std::abs(up[i])));
    check.guards(found);
  }
}

// Products and sums that no build contracts: the bits agree.
void rope(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "rope_f32");
  for (const char* fill : kFills)
    for (int half : {1, 2, 3, 4, 5, 8, 15, 16, 20, 64}) {
      check.at(text({{"half", half}}, fill));
      Buffer<float> found = filled(fill, 2 * half), wanted = found;
      Buffer<float> cos(half), sin(cos.size());
      for (int i = 0; i < cos.size(); ++i) {
        const float angle = 9 * normal();
        cos[i] = std::cos(angle), sin[i] = std::sin(angle);
      }
      table.rope_f32(found.data(), cos.data(), sin.data(), half);
      scalar.rope_f32(wanted.data(), cos.data(), sin.data(), half);
      check.same(found, wanted);
      check.guards(found);
    }
}

// From ones, a multiply-add with factor 1 gives 2: after a round, what the sums of the sink add up to is the number of operations.
void multiply_add(const KernelTable& table) {
  Check check(table, "multiply_add");
  Buffer<float> sink(kChannels, 1.0f);
  const int64_t round = table.multiply_add(1, sink.data());
  float total = 0;
  for (int i = 0; i < kChannels && sink[i] != 1; ++i) total += sink[i];
  check.same(0, round, static_cast<int64_t>(total));
  check.guards(sink);
  for (int rounds : {0, 2, 1000}) check.same(rounds, table.multiply_add(rounds, sink.data()), rounds * round);
}

}  // namespace

void elementwise(const KernelTable& table, const KernelTable& scalar) {
  widen(table, "widen_bf16", table.widen_bf16, exact_bf16);
  widen(table, "widen_f16", table.widen_f16, exact_f16);
  narrow(table, scalar);
  round(table);
  rms_norm(table, scalar);
  silu(table, scalar);
  rope(table, scalar);
  multiply_add(table);
}

}  // namespace cross
