// Every kernel of the named builds against the scalar build: odd sizes, tails, unaligned buffers, extremes. Integers are compared bit
// by bit, floats within a tolerance that is derived where it stands. One C++ program, for processors that only an emulator offers.
//
//   kernels neon neondot
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/dispatch.h"

namespace {

using llada::Ahead;
using llada::AttentionTile;
using llada::Extremes;
using llada::KernelTable;
using llada::QuantizedTile;

constexpr double kEpsilon = FLT_EPSILON;
constexpr double kTiny = 1.4e-45;  // the spacing of denormals: what an underflowing operation may add to any relative error
constexpr double kExponential = 2.5e-7;  // relative error of exponential(), see kernels-inl.h
constexpr int kChannels = llada::kMaxPanel;

int failures = 0;
std::mt19937 generator(1);

// n elements that nothing wider than T is aligned to, between two guards.
template <class T>
class Buffer {
 public:
  explicit Buffer(int n, T value = T()) : storage_(n + 2 * kGuard, value) {
    std::memset(storage_.data(), kByte, kGuard * sizeof(T));
    std::memset(storage_.data() + kGuard + n, kByte, kGuard * sizeof(T));
  }
  T* data() { return storage_.data() + kGuard; }
  const T* data() const { return storage_.data() + kGuard; }
  int size() const { return static_cast<int>(storage_.size()) - 2 * kGuard; }
  T& operator[](int i) { return data()[i]; }
  const T& operator[](int i) const { return data()[i]; }
  bool guards_intact() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(storage_.data());
    const int guard = kGuard * static_cast<int>(sizeof(T)), end = static_cast<int>(storage_.size() * sizeof(T));
    for (int i = 0; i < guard; ++i)
      if (bytes[i] != kByte || bytes[end - 1 - i] != kByte) return false;
    return true;
  }

 private:
  static constexpr int kGuard = 33;  // odd: allocations are aligned to 16 bytes
  static constexpr unsigned char kByte = 0xa5;
  std::vector<T> storage_;
};

// The comparisons of one kernel.
class Check {
 public:
  Check(const KernelTable& table, const char* kernel) : name_(std::string(table.name) + " " + kernel) {}
  ~Check() { std::printf("%-24s %8ld compared, worst %.2f of the tolerance\n", name_.c_str(), compared_, worst_); }

  void at(const std::string& where) { where_ = where; }

  void near(int i, double found, double wanted, double tolerance) {
    ++compared_;
    if (std::isnan(wanted) || std::isinf(wanted)) {
      if (std::isnan(wanted) ? !std::isnan(found) : found != wanted) fail(i, found, wanted, tolerance);
      return;
    }
    const double excess = found == wanted ? 0 : std::abs(found - wanted) / tolerance;
    if (excess > worst_) worst_ = excess;
    if (!(excess <= 1)) fail(i, found, wanted, tolerance);
  }

  template <class T>
  void same(int i, T found, T wanted) {
    ++compared_;
    if (std::memcmp(&found, &wanted, sizeof(T))) fail(i, static_cast<double>(found), static_cast<double>(wanted), 0);
  }

  template <class T>
  void same(const Buffer<T>& found, const Buffer<T>& wanted) {
    for (int i = 0; i < wanted.size(); ++i) same(i, found[i], wanted[i]);
  }

  template <class T>
  void guards(const Buffer<T>& buffer) {
    ++compared_;
    if (!buffer.guards_intact()) fail(0, 0, 0, 0, "wrote outside its output");
  }

 private:
  void fail(int i, double found, double wanted, double tolerance, const char* what = "differs") {
    ++failures;
    if (++reported_ <= 5)
      std::printf("%s, %s: element %d %s: found %.9g, wanted %.9g, tolerance %.3g\n", name_.c_str(), where_.c_str(), i, what, found,
                  wanted, tolerance);
  }

  std::string name_, where_;
  long compared_ = 0, reported_ = 0;
  double worst_ = 0;
};

std::string text(std::initializer_list<std::pair<const char*, int>> values, const char* fill = "") {
  std::string s = fill;
  for (const auto& [name, value] : values) s += std::string(s.empty() ? "" : ", ") + name + " " + std::to_string(value);
  return s;
}

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float normal() { return std::normal_distribution<float>()(generator); }

Buffer<float> normals(int n, float scale = 1) {
  Buffer<float> x(n);
  for (int i = 0; i < n; ++i) x[i] = normal() * scale;
  return x;
}

const char* const kFills[] = {"normal", "zeros", "denormals", "outlier"};

Buffer<float> filled(const std::string& fill, int n) {
  Buffer<float> x = normals(n, fill == "zeros" ? 0.0f : fill == "denormals" ? 1e-40f : 1.0f);
  if (fill == "outlier") x[uniform(0, n - 1)] = -1e30f;
  return x;
}

// ---- matrix product

constexpr int kGap = 5;  // columns between rows that no kernel may touch

// Bytes to fetch that end within a cache line and are no multiple of rows, depths or groups; for the first panel of a product only, so that
// one without them is compared as well.
Ahead ahead_of(int begin) {
  static const Buffer<char> bytes(997);
  return begin ? Ahead() : Ahead{bytes.data(), bytes.size(), nullptr};
}

Buffer<float> multiply(const KernelTable& table, const float* a, int a_stride, const Buffer<float>& w, const Buffer<float>& c, int rows,
                       int depth, bool accumulate, Check& check) {
  const int stride = kChannels + kGap, w_stride = table.panel + 3;
  Buffer<float> out(rows * stride, NAN);
  for (int r = 0; accumulate && r < rows; ++r)
    std::memcpy(&out[r * stride], &c[r * kChannels], sizeof(float) * kChannels);
  for (int begin = 0; begin < kChannels; begin += table.panel) {
    Buffer<float> panel(depth * w_stride, NAN);
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < table.panel; ++j) panel[k * w_stride + j] = w[k * kChannels + begin + j];
    table.gemm_f32({a, a_stride, panel.data(), w_stride, out.data() + begin, stride, rows, depth, accumulate, ahead_of(begin)});
  }
  check.guards(out);
  for (int r = 0; r < rows; ++r)
    for (int j = kChannels; j < stride; ++j) check.near(r * stride + j, out[r * stride + j], NAN, 0);
  return out;
}

void gemm(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "gemm_f32");
  const int stride = kChannels + kGap;
  for (const char* fill : kFills)
    for (int depth : {1, 7, 64, 255, 256})
      for (int rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 29})
        for (bool accumulate : {false, true}) {
          check.at(text({{"rows", rows}, {"depth", depth}, {"accumulate", accumulate}}, fill));
          const int a_stride = depth + 3;
          const Buffer<float> a = filled(fill, rows * a_stride), w = normals(depth * kChannels),
                              c = normals(rows * kChannels);
          const Buffer<float> found = multiply(table, a.data(), a_stride, w, c, rows, depth, accumulate, check);
          const Buffer<float> wanted = multiply(scalar, a.data(), a_stride, w, c, rows, depth, accumulate, check);
          for (int r = 0; r < rows; ++r)
            for (int j = 0; j < kChannels; ++j) {
              // Each side's chain rounds at most depth + 1 times by half an epsilon of the sum of magnitudes, then the sum with c.
              double size = accumulate ? std::abs(c[r * kChannels + j]) : 0;
              for (int k = 0; k < depth; ++k)
                size += std::abs(static_cast<double>(a[r * a_stride + k]) * w[k * kChannels + j]);
              const int i = r * stride + j;
              check.near(i, found[i], wanted[i], (depth + 2) * (kEpsilon * size + kTiny));
            }
          for (int r = 0; r < rows; ++r) {
            Buffer<float> own(kChannels);
            std::memcpy(own.data(), &c[r * kChannels], sizeof(float) * kChannels);
            const Buffer<float> alone = multiply(table, a.data() + r * a_stride, a_stride, w, own, 1, depth, accumulate, check);
            for (int j = 0; j < kChannels; ++j) check.same(r * stride + j, found[r * stride + j], alone[j]);
          }
        }
}

// ---- integer weights

struct Codes {
  const char* name;
  int bits;
  int zero() const { return bits == 4 ? 8 : 128; }
  int lowest() const { return bits == 4 ? 0 : 1; }
  int highest() const { return bits == 4 ? 15 : 255; }
};

struct Integers {
  int rows, groups, group;
  int depth() const { return groups * group; }
  Buffer<int8_t> x;        // [rows, depth]
  Buffer<uint8_t> w;       // [depth, kChannels]
  Buffer<float> x_scales;  // [groups, rows]
  Buffer<float> w_scales;  // [groups, kChannels]
  Buffer<float> c;         // [rows, kChannels]

  Integers(int rows, int groups, int group)
      : rows(rows),
        groups(groups),
        group(group),
        x(rows * depth()),
        w(depth() * kChannels),
        x_scales(rows * groups, 1.0f),
        w_scales(groups * kChannels, 1.0f),
        c(rows * kChannels) {}
};

Buffer<float> multiply(const KernelTable& table, int bits, const Integers& in, int first, int rows, bool accumulate, Check& check) {
  const int stride = kChannels + kGap, depth = in.depth();
  Buffer<float> out(rows * stride, NAN);
  Buffer<int32_t> sums(in.groups * in.rows);
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < depth; ++k) sums[k / in.group * in.rows + first + r] += in.x[(first + r) * depth + k];
    for (int j = 0; accumulate && j < kChannels; ++j) out[r * stride + j] = in.c[(first + r) * kChannels + j];
  }
  Buffer<float> unpacking = out;  // what weights give that are still two a byte
  for (int begin = 0; begin < kChannels; begin += table.panel) {
    Buffer<uint8_t> panel(depth * table.panel);
    Buffer<float> scales(in.groups * table.panel);
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < table.panel; ++j)
        panel[(k / 4 * table.panel + j) * 4 + k % 4] = in.w[k * kChannels + begin + j];
    for (int g = 0; g < in.groups; ++g)
      for (int j = 0; j < table.panel; ++j) scales[g * table.panel + j] = in.w_scales[g * kChannels + begin + j];
    QuantizedTile tile;
    tile.x = in.x.data() + first * depth;
    tile.x_stride = depth;
    tile.x_scales = in.x_scales.data() + first;
    tile.x_sums = sums.data() + first;
    tile.x_group_stride = in.rows;
    tile.w = panel.data();
    tile.w_scales = scales.data();
    tile.c = out.data() + begin;
    tile.c_stride = stride;
    tile.rows = rows;
    tile.groups = in.groups;
    tile.group = in.group;
    tile.accumulate = accumulate;
    tile.ahead = ahead_of(begin);
    (bits == 4 ? table.gemm_u4 : table.gemm_u8)(tile);
    if (bits == 8) continue;
    const int four = table.panel * 4;  // weights of four depths; the next four are their high nibbles
    Buffer<uint8_t> packed(panel.size() / 2);
    for (int i = 0; i < packed.size(); ++i) {
      const int low = i / four * 2 * four + i % four;
      packed[i] = static_cast<uint8_t>(panel[low] | panel[low + four] << 4);
    }
    tile.w = packed.data();
    tile.c = unpacking.data() + begin;
    table.gemm_packed_u4(tile);
  }
  if (bits == 4) check.same(out, unpacking);
  check.guards(out);
  return out;
}

void quantized(const KernelTable& table, const KernelTable& scalar, const Codes& codes) {
  Check check(table, codes.name);
  const int stride = kChannels + kGap;
  const int ends[] = {codes.lowest(), codes.highest()};
  // Activations and weights of every fill; the first four are the largest sums of either sign.
  const std::vector<std::pair<const char*, std::function<void(Integers&)>>> fills = {
      {"all 127, lowest", [&](Integers& in) { in.x = Buffer<int8_t>(in.x.size(), 127), in.w = Buffer<uint8_t>(in.w.size(), ends[0]); }},
      {"all 127, highest", [&](Integers& in) { in.x = Buffer<int8_t>(in.x.size(), 127), in.w = Buffer<uint8_t>(in.w.size(), ends[1]); }},
      {"all -127, lowest", [&](Integers& in) { in.x = Buffer<int8_t>(in.x.size(), -127), in.w = Buffer<uint8_t>(in.w.size(), ends[0]); }},
      {"all -127, highest", [&](Integers& in) { in.x = Buffer<int8_t>(in.x.size(), -127), in.w = Buffer<uint8_t>(in.w.size(), ends[1]); }},
      {"zeros, ends", [&](Integers& in) { for (int i = 0; i < in.w.size(); ++i) in.w[i] = static_cast<uint8_t>(ends[uniform(0, 1)]); }},
      {"one outlier", [&](Integers& in) {
         for (int i = 0; i < in.w.size(); ++i) in.w[i] = static_cast<uint8_t>(uniform(ends[0], ends[1]));
         in.x[in.x.size() / 2] = -127;
       }},
      {"ends", [&](Integers& in) {
         for (int i = 0; i < in.w.size(); ++i) in.w[i] = static_cast<uint8_t>(ends[uniform(0, 1)]);
         for (int i = 0; i < in.x.size(); ++i) in.x[i] = uniform(0, 1) ? 127 : -127;
       }},
      {"uniform", [&](Integers& in) {
         for (int i = 0; i < in.w.size(); ++i) in.w[i] = static_cast<uint8_t>(uniform(ends[0], ends[1]));
         for (int i = 0; i < in.x.size(); ++i) in.x[i] = static_cast<int8_t>(uniform(-127, 127));
       }},
  };
  for (const auto& [fill, apply] : fills)
    for (int group : {32, 64, 128})
      for (int groups : {1, 3})
        for (int rows : {1, 2, 3, 4, 5, 6, 7, 13})
          for (bool accumulate : {false, true}) {
            check.at(text({{"rows", rows}, {"groups", groups}, {"group", group}, {"accumulate", accumulate}}, fill));
            Integers in(rows, groups, group);
            apply(in);
            for (int i = 0; i < in.c.size(); ++i) in.c[i] = static_cast<float>(uniform(-1000, 1000));
            // Scales of 1: every result is an integer below 3 x 128 x 127 x 127 + 1000 < 2^24, which float32 holds.
            const Buffer<float> found = multiply(table, codes.bits, in, 0, rows, accumulate, check);
            for (int r = 0; r < rows; ++r)
              for (int j = 0; j < kChannels; ++j) {
                const int i = r * stride + j;
                int64_t exact = accumulate ? static_cast<int64_t>(in.c[r * kChannels + j]) : 0;
                for (int k = 0; k < in.depth(); ++k)
                  exact += in.x[r * in.depth() + k] * (in.w[k * kChannels + j] - codes.zero());
                check.same(i, static_cast<int64_t>(found[i]), exact);
              }
            check.same(found, multiply(scalar, codes.bits, in, 0, rows, accumulate, check));

            for (int i = 0; i < in.x_scales.size(); ++i) in.x_scales[i] = std::abs(normal());
            for (int i = 0; i < in.w_scales.size(); ++i) in.w_scales[i] = normal();
            const Buffer<float> scaled = multiply(table, codes.bits, in, 0, rows, accumulate, check);
            const Buffer<float> wanted = multiply(scalar, codes.bits, in, 0, rows, accumulate, check);
            for (int r = 0; r < rows; ++r) {
              const Buffer<float> alone = multiply(table, codes.bits, in, r, 1, accumulate, check);
              for (int j = 0; j < kChannels; ++j) {
                const int i = r * stride + j;
                check.same(i, scaled[i], alone[j]);
                // On each side a group's term rounds twice at most, and the chain once a group, by half an epsilon.
                double size = accumulate ? std::abs(in.c[r * kChannels + j]) : 0;
                for (int g = 0; g < groups; ++g) {
                  int64_t sum = 0;
                  for (int k = g * group; k < (g + 1) * group; ++k)
                    sum += in.x[r * in.depth() + k] * (in.w[k * kChannels + j] - codes.zero());
                  size += std::abs(static_cast<double>(sum) * in.x_scales[g * rows + r] *
                                   in.w_scales[g * kChannels + j]);
                }
                check.near(i, scaled[i], wanted[i], (groups + 2) * (kEpsilon * size + kTiny));
              }
            }
          }
}

void unpack(const KernelTable& table) {
  Check check(table, "unpack_u4");
  for (int quads : {2, 4, 10}) {  // fours of depths
    check.at(text({{"depth", 4 * quads}}));
    const int row = table.panel * 4;
    Buffer<uint8_t> codes(quads * row), packed(codes.size() / 2), out(codes.size(), 0xff);
    for (int i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(uniform(0, 15));
    for (int q = 0; q < quads; q += 2)
      for (int i = 0; i < row; ++i)
        packed[q / 2 * row + i] =
            static_cast<uint8_t>(codes[q * row + i] | codes[(q + 1) * row + i] << 4);
    table.unpack_u4(packed.data(), out.data(), packed.size());
    check.same(out, codes);
    check.guards(out);
  }
}

// The same roundings in every build: a product and a rounding to nearest even. So the bits agree, ties included.
void quantize(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "quantize_q8");
  const auto compare = [&](const Buffer<float>& x, int group) {
    const int n = x.size(), groups = (n + group - 1) / group;
    Buffer<int8_t> q(groups * group, 99), wanted_q = q;
    const int stride = 1 + n % 3;
    Buffer<float> scales(groups * stride, 7.0f), wanted_scales = scales;
    Buffer<int32_t> sums(groups * stride, 7), wanted_sums = sums;
    table.quantize_q8(x.data(), q.data(), scales.data(), sums.data(), stride, n, group);
    scalar.quantize_q8(x.data(), wanted_q.data(), wanted_scales.data(), wanted_sums.data(), stride, n, group);
    check.same(q, wanted_q);
    check.same(sums, wanted_sums);
    for (int g = 0; g < scales.size(); ++g) check.near(g, scales[g], wanted_scales[g], 0);
    check.guards(q);
    check.guards(scales);
    check.guards(sums);
  };
  for (int group : {32, 64, 128})
    for (int n : {1, 3, 7, 31, 32, 33, 64, 100, 127, 128, 129, 300}) {
      for (const char* fill : kFills) {
        check.at(text({{"n", n}, {"group", group}}, fill));
        compare(filled(fill, n), group);
      }
      for (float bad : {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX}) {
        check.at(text({{"n", n}, {"group", group}}, std::to_string(bad).c_str()));
        Buffer<float> x = normals(n);
        x[uniform(0, n - 1)] = bad;
        compare(x, group);
      }
      check.at(text({{"n", n}, {"group", group}}, "ties"));
      Buffer<float> x(n);
      for (int i = 0; i < x.size(); ++i) x[i] = static_cast<float>(uniform(-126, 126)) + 0.5f;
      x[0] = 127;
      compare(x, group);
    }
}

// ---- elementwise

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

// ---- attention

Buffer<float> attend(const KernelTable& table, const float* q, const Buffer<float>& k, const Buffer<float>& v, int rows, int keys, int dim,
                     float scale, Check& check, const int32_t* hidden = nullptr) {
  const int panel = table.panel, padded = (keys + panel - 1) / panel * panel, width = (dim + panel - 1) / panel * panel;
  const int stride = dim + kGap;
  Buffer<float> panels(padded * dim), wide(keys * width), out(rows * stride, 7.0f);
  for (int i = 0; i < keys; ++i)
    for (int d = 0; d < dim; ++d) {
      panels[(i / panel * dim + d) * panel + i % panel] = k[i * dim + d];
      wide[i * width + d] = v[i * dim + d];
    }
  table.attention_f32({q, dim, panels.data(), wide.data(), out.data(), stride, rows, keys, dim, scale, hidden});
  check.guards(out);
  for (int r = 0; r < rows; ++r)
    for (int d = dim; d < stride; ++d) check.same(r * stride + d, out[r * stride + d], 7.0f);
  return out;
}

// What a row may differ by from scalar's, as a share of the largest value. On each side a score errs by (dim + 2) / 2 epsilon of its
// magnitudes, which the exponential makes relative, in a weight and in the sum of weights; the two sums over the keys round keys / 2
// epsilon each, scaling and division a few more.
double attention_error(const float* row, const Buffer<float>& k, int keys, int dim, float scale) {
  double score = 0;  // the largest sum of magnitudes of a score
  for (int i = 0; i < keys; ++i) {
    double size = 0;
    for (int d = 0; d < dim; ++d) size += std::abs(static_cast<double>(row[d]) * k[i * dim + d]) * scale;
    score = std::max(score, size);
  }
  return 2 * ((dim + 2) * kEpsilon * score + 2 * kExponential + (keys + 4) * kEpsilon);
}

double largest_value(const Buffer<float>& v, int keys, int dim, int d) {
  double value = 0;
  for (int j = 0; j < keys; ++j) value = std::max(value, static_cast<double>(std::abs(v[j * dim + d])));
  return value;
}

Buffer<float> without(const Buffer<float>& x, int key, int dim) {
  if (key < 0) return x;
  Buffer<float> kept(x.size() - dim);
  for (int i = 0; i < kept.size(); ++i) kept[i] = x[i < key * dim ? i : i + dim];
  return kept;
}

// A row with a hidden key is what scalar makes of the others. Alone and with that key NaN and its value infinite it has the same bits.
void attention_without(const KernelTable& table, const KernelTable& scalar, Check& check) {
  for (int dim : {2, 24, 128})
    for (int keys : {2, 16, 33, 128, 129, 256, 257, 300}) {
      const int rows = table.attention_rows - keys % 3, stride = dim + kGap;
      const float scale = 1 / std::sqrt(static_cast<float>(dim));
      check.at(text({{"rows", rows}, {"keys", keys}, {"dim", dim}}, "hidden"));
      const Buffer<float> q = normals(rows * dim), k = normals(keys * dim), v = normals(keys * dim);
      std::vector<int32_t> hidden{0, keys - 1, -1, std::min(127, keys - 1)};
      while (hidden.size() < static_cast<size_t>(rows)) hidden.push_back(uniform(0, keys - 1));
      const Buffer<float> found = attend(table, q.data(), k, v, rows, keys, dim, scale, check, hidden.data());
      for (int r = 0; r < rows; ++r) {
        const int32_t key = hidden[static_cast<size_t>(r)];
        const float* row = q.data() + r * dim;
        const Buffer<float> others = without(k, key, dim), values = without(v, key, dim);
        const int seen = others.size() / dim;
        const Buffer<float> wanted = attend(scalar, row, others, values, 1, seen, dim, scale, check);
        Buffer<float> damaged_k = k, damaged_v = v;
        for (int d = 0; key >= 0 && d < dim; ++d) damaged_k[key * dim + d] = NAN, damaged_v[key * dim + d] = INFINITY;
        const Buffer<float> alone = attend(table, row, damaged_k, damaged_v, 1, keys, dim, scale, check, &key);
        const double relative = attention_error(row, others, seen, dim, scale);
        for (int d = 0; d < dim; ++d) {
          check.near(r * stride + d, found[r * stride + d], wanted[d], relative * largest_value(values, seen, dim, d) + kTiny);
          check.same(r * stride + d, alone[d], found[r * stride + d]);
        }
      }
    }
}

void attention(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "attention_f32");
  for (const std::string fill : {"normal", "zeros", "denormals", "loud", "damaged"})
    for (int dim : {2, 16, 24, 64, 128, 256})
      for (int keys : {1, 5, 15, 16, 17, 31, 33, 64, 65, 200}) {
        const int rows = table.attention_rows - keys % 3, stride = dim + kGap;
        const float scale = 1 / std::sqrt(static_cast<float>(dim));
        check.at(text({{"rows", rows}, {"keys", keys}, {"dim", dim}}, fill.c_str()));
        Buffer<float> q = filled(fill, rows * dim), k = filled(fill, keys * dim);
        const Buffer<float> v = normals(k.size());
        if (fill == "loud") k[uniform(0, keys - 1) * dim] = 1000;  // one key outweighs the others, by hundreds
        if (fill == "damaged") q[rows / 2 * dim] = uniform(0, 1) ? NAN : INFINITY;
        const Buffer<float> found = attend(table, q.data(), k, v, rows, keys, dim, scale, check);
        for (int r = 0; r < rows; ++r) {
          const float* row = q.data() + r * dim;
          const Buffer<float> wanted = attend(scalar, row, k, v, 1, keys, dim, scale, check);
          const Buffer<float> alone = attend(table, row, k, v, 1, keys, dim, scale, check);
          const double relative = attention_error(row, k, keys, dim, scale);
          for (int d = 0; d < dim; ++d) {
            const int i = r * stride + d;
            check.near(i, found[i], wanted[d], relative * largest_value(v, keys, dim, d) + kTiny);
            if (std::isnan(found[i])) {
              check.near(i, alone[d], NAN, 0);
            } else {
              check.same(i, found[i], alone[d]);
            }
          }
        }
      }
  attention_without(table, scalar, check);
}

// ---- the peak of a core

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

// ---- statistics of a row of logits

using Logits = std::vector<std::pair<std::string, Buffer<float>>>;

// Rows of n logits, none above 40, and what is in them.
Logits logits(int n) {
  const auto with = [&](Buffer<float> x, std::initializer_list<int> places, float value) {
    for (int i : places) x[(i % n + n) % n] = value;
    return x;
  };
  Logits rows = {{"normal", normals(n, 5)}, {"all -inf", Buffer<float>(n, -INFINITY)}, {"all NaN", Buffer<float>(n, NAN)}};
  rows.emplace_back("all equal", Buffer<float>(n, -3.5f));
  rows.emplace_back("zeros of both signs", with(Buffer<float>(n), {uniform(0, n - 1), uniform(0, n - 1)}, -0.0f));
  rows.emplace_back("descending", normals(n));
  for (int i = 0; i < n; ++i) rows.back().second[i] = -0.25f * static_cast<float>(i);
  rows.emplace_back("few values", normals(n));
  for (int i = 0; i < n; ++i) rows.back().second[i] = static_cast<float>(uniform(-2, 2));
  rows.emplace_back("far below", normals(n));
  for (int i = 0; i < n; ++i) rows.back().second[i] = -std::uniform_real_distribution<float>(600, 900)(generator);
  rows.emplace_back("one above -inf", with(Buffer<float>(n, -INFINITY), {uniform(0, n - 1)}, -7.0f));
  rows.emplace_back("-inf among others", with(normals(n, 5), {0, n / 2, -1, uniform(0, n - 1)}, -INFINITY));
  rows.emplace_back("lowest", with(normals(n), {uniform(0, n - 1)}, -FLT_MAX));
  for (int i : {0, 15, 16, n / 2, -1}) {
    const std::string place = std::to_string(i);
    rows.emplace_back("largest at " + place, with(normals(n, 5), {i}, 40.0f));
    rows.emplace_back("NaN at " + place, with(normals(n, 5), {i}, NAN));
    rows.emplace_back("-NaN and largest at " + place, with(with(normals(n, 5), {i + 1}, 40.0f), {i}, -NAN));
    rows.emplace_back("tie with the last at " + place, with(normals(n, 5), {i, -1}, 40.0f));
    rows.emplace_back("tie 16 apart at " + place, with(normals(n, 5), {i, i + 16}, 40.0f));
    rows.emplace_back("neighbours at " + place, with(with(normals(n, 5), {i + 1}, 40.0f), {i}, std::nextafter(40.0f, 0.0f)));
  }
  return rows;
}

// Around multiples of the lanes of the kernels.
constexpr int kRowLengths[] = {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 63, 65, 100, 1023, 4097};

void extremes(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "extremes");
  for (int n : kRowLengths)
    for (const auto& [name, x] : logits(n)) {
      check.at(text({{"n", n}}, name.c_str()));
      Extremes found = {7, 7, 7, 7}, wanted = {8, 8, 8, 8};
      table.extremes(x.data(), n, &found);
      scalar.extremes(x.data(), n, &wanted);
      check.same(0, found.most, wanted.most);
      check.same(1, found.second, wanted.second);
      check.same(2, found.index, wanted.index);
      check.same(3, found.nan, wanted.nan);

      // Scalar and vectors are one source: both against the contract, which leaves open what a NaN does to the others.
      Extremes exact = {-INFINITY, -INFINITY, -1, 0};
      for (int i = 0; i < n; ++i) {
        exact.nan |= std::isnan(x[i]);
        if (x[i] > exact.most) {
          exact.second = exact.most;
          exact.most = x[i];
          exact.index = i;
        } else if (x[i] > exact.second) {
          exact.second = x[i];
        }
      }
      check.same(3, found.nan, exact.nan);
      if (exact.nan) continue;
      check.near(0, found.most, exact.most, 0);
      check.near(1, found.second, exact.second, 0);
      check.same(2, found.index, exact.index);
    }
}

void softmax_sums(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "softmax_sums");
  for (int n : kRowLengths)
    for (const auto& [name, x] : logits(n))
      for (double shift : {40.0, 40.1, 123.456, 800.0}) {
        check.at(text({{"n", n}, {"shift", static_cast<int>(shift)}}, name.c_str()));
        double total = 7, moment = 7, wanted_total = 8, wanted_moment = 8;
        table.softmax_sums(x.data(), n, shift, &total, &moment);
        scalar.softmax_sums(x.data(), n, shift, &wanted_total, &wanted_moment);
        check.same(0, total, wanted_total);
        check.same(1, moment, wanted_moment);

        double sum = 0, size = 0;
        bool nan = false;
        for (int i = 0; i < n; ++i) {
          const double d = x[i] - shift, e = d > -708 ? std::exp(d) : 0;
          nan |= std::isnan(d);
          if (e > 0) sum += e, size -= e * d;
        }
        if (nan) continue;
        // The exponential errs by 2 epsilon, that of libm by half of one; on each side a term of the moment rounds once more and a sum n
        // times, by half an epsilon each.
        const double relative = (n + 4) * DBL_EPSILON;
        check.near(0, total, sum, relative * sum);
        check.near(1, moment, -size, relative * size);
      }
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  try {
    const KernelTable& scalar = llada::kernels_for("scalar");
    for (int i = 1; i < argc; ++i) {
      const KernelTable& table = llada::kernels_for(argv[i]);
      gemm(table, scalar);
      quantized(table, scalar, {"gemm_u4", 4});
      quantized(table, scalar, {"gemm_u8", 8});
      unpack(table);
      quantize(table, scalar);
      widen(table, "widen_bf16", table.widen_bf16, exact_bf16);
      widen(table, "widen_f16", table.widen_f16, exact_f16);
      narrow(table, scalar);
      rms_norm(table, scalar);
      silu(table, scalar);
      rope(table, scalar);
      attention(table, scalar);
      multiply_add(table);
      extremes(table, scalar);
      softmax_sums(table, scalar);
    }
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
    return 2;
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
