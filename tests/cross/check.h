// What every comparison of kernels needs: buffers with guards, values that fill them, and a check that counts and reports.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/table.h"

namespace cross {

using llada::Ahead;
using llada::KernelTable;

inline constexpr double kEpsilon = FLT_EPSILON;
inline constexpr double kTiny = 1.4e-45;  // the spacing of denormals: what an underflowing operation may add to any relative error
inline constexpr double kExponential = 2.5e-7;  // relative error of exponential(), see kernels-inl.h
inline constexpr int kChannels = llada::kMaxPanel;

inline int failures = 0;
inline std::mt19937 generator(1);

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

inline std::string text(std::initializer_list<std::pair<const char*, int>> values, const char* fill = "") {
  std::string s = fill;
  for (const auto& [name, value] : values) s += std::string(s.empty() ? "" : ", ") + name + " " + std::to_string(value);
  return s;
}

inline int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
inline float normal() { return std::normal_distribution<float>()(generator); }

inline Buffer<float> normals(int n, float scale = 1) {
  Buffer<float> x(n);
  for (int i = 0; i < n; ++i) x[i] = normal() * scale;
  return x;
}

inline const char* const kFills[] = {"normal", "zeros", "denormals", "outlier"};

inline Buffer<float> filled(const std::string& fill, int n) {
  Buffer<float> x = normals(n, fill == "zeros" ? 0.0f : fill == "denormals" ? 1e-40f : 1.0f);
  if (fill == "outlier") x[uniform(0, n - 1)] = -1e30f;
  return x;
}

inline constexpr int kGap = 5;  // columns between rows that no kernel may touch

// Bytes to fetch that end within a cache line and are no multiple of rows, depths or groups; for the first panel of a product only, so that
// one without them is compared as well.
inline Ahead ahead_of(int begin) {
  static const Buffer<char> bytes(997);
  return begin ? Ahead() : Ahead{bytes.data(), bytes.size(), nullptr};
}

}  // namespace cross
