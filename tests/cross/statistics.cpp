// Statistics of a row of logits.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "comparisons.h"

namespace cross {
namespace {

using llada::Extremes;

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

void statistics(const KernelTable& table, const KernelTable& scalar) {
  extremes(table, scalar);
  softmax_sums(table, scalar);
}

}  // namespace cross
