#include "c_api/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace llada {

namespace {

constexpr int64_t kTile = 4096;  // the decoding loop's VOCABULARY_TILE: the same sums, to the bit
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Softmax {
  double maximum = -kInfinity;
  int64_t index = -1;  // of the lowest maximum
  double total = 0;  // of exp(logit - maximum); NaN when a logit is NaN or +inf, 0 when none is finite

  Softmax(const KernelTable& kernels, const float* logits, int64_t n) {
    for (int64_t begin = 0; begin < n; begin += kTile) add(kernels, logits + begin, begin, static_cast<int>(std::min(kTile, n - begin)));
  }

  void add(const KernelTable& kernels, const float* logits, int64_t begin, int n) {
    Extremes found;
    kernels.extremes(logits, n, &found);
    if (found.nan || found.most == kInfinity) {
      total = std::numeric_limits<double>::quiet_NaN();
      return;
    }
    if (found.most > maximum) {
      total *= std::exp(maximum - found.most);
      maximum = found.most;
      index = begin + found.index;
    }
    if (maximum == -kInfinity) return;
    double sum, moment;
    kernels.softmax_sums(logits, n, maximum, &sum, &moment);
    total += sum;
  }
};

double next(const Uniform& uniform) {
  const double u = uniform.next(uniform.state);
  if (!(u >= 0 && u < 1)) throw std::invalid_argument("uniform: expected a number in [0, 1), found " + std::to_string(u));
  return u;
}

}  // namespace

bool Drawer::draw(const float* logits, const DrawRule& rule, const Uniform& uniform, Drawn& drawn) {
  const Softmax softmax(kernels_, logits, vocabulary_);
  if (!(softmax.total > 0)) return false;
  uint32_t token = 0;
  if (rule.temperature == 0) {
    token = static_cast<uint32_t>(softmax.index);
  } else {
    keep(logits, rule);
    double best = -kInfinity;
    bool found = false;
    for (const uint32_t i : kept_) {
      const double noisy = logits[i] - rule.temperature * std::log(-std::log(next(uniform)));
      if (noisy > best || (!found && logits[i] > -kInfinity)) {  // u = 0 is noise of -inf, and may be all there is
        best = noisy;
        token = i;
        found = true;
      }
    }
  }
  drawn = {token, std::exp(logits[token] - softmax.maximum) / softmax.total};
  return true;
}

void Drawer::keep(const float* logits, const DrawRule& rule) {
  const size_t n = static_cast<size_t>(vocabulary_);
  kept_.resize(n);
  std::iota(kept_.begin(), kept_.end(), 0u);
  const auto likelier = [&](uint32_t a, uint32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  if (rule.top_k > 0 && rule.top_k < n) {
    std::nth_element(kept_.begin(), kept_.begin() + (rule.top_k - 1), kept_.end(), likelier);
    kept_.resize(rule.top_k);
  }
  if (rule.top_p < 1) {
    std::sort(kept_.begin(), kept_.end(), likelier);
    mass_.resize(kept_.size());
    double total = 0;
    for (size_t i = 0; i < kept_.size(); ++i)
      total += mass_[i] = std::exp((static_cast<double>(logits[kept_[i]]) - logits[kept_[0]]) / rule.temperature);
    size_t keep = 0;
    for (double reached = 0; keep < kept_.size() && reached < rule.top_p * total; ++keep) reached += mass_[keep];
    kept_.resize(keep);
  }
  std::sort(kept_.begin(), kept_.end());
}

}  // namespace llada
