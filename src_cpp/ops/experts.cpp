#include "ops/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

namespace llada {

namespace {

// Slots for the copies: by expert, then by row.
void place(int64_t experts, int64_t rows, Assignments& a) {
  const int64_t copies = rows * a.chosen;
  std::fill_n(a.begins.data(), experts + 1, 0);
  for (int64_t i = 0; i < copies; ++i) ++a.begins[a.ids[i] + 1];
  for (int64_t e = 0; e < experts; ++e) a.begins[e + 1] += a.begins[e];
  // Meanwhile each expert's begin moves to its end, where the next one begins.
  for (int64_t i = 0; i < copies; ++i) a.slots[i] = a.begins[a.ids[i]]++;
  for (int64_t e = experts; e > 0; --e) a.begins[e] = a.begins[e - 1];
  a.begins[0] = 0;
}

Rows from(Rows rows, int64_t begin) { return {rows.row(begin), rows.stride}; }

// Arithmetic holds up experts of many rows, and memory those of few. In this order one thread begins with the first and another with the
// last, so that both are busy at any time: 3 to 5 % less for 32 rows on two cores.
bool has_more_rows(const Product& a, const Product& b) {
  return a.rows != b.rows ? a.rows > b.rows : a.quantized_begin < b.quantized_begin;
}

// Added to the sum of the chosen sigmoids, as in the published model: a row of zeros has weights of zero.
constexpr double kLeastTotal = 1e-20;

// The logits become their softmax, and the scores too. False when they are not all finite.
bool score_softmax(const Choice& choice, float* logits, float* scores) {
  const float most = *std::max_element(logits, logits + choice.experts);
  double total = 0;
  for (int64_t e = 0; e < choice.experts; ++e) total += std::exp(static_cast<double>(logits[e]) - most);
  for (int64_t e = 0; e < choice.experts; ++e)
    scores[e] = logits[e] = static_cast<float>(std::exp(static_cast<double>(logits[e]) - most) / total);
  return !std::isnan(total);
}

// The logits become their sigmoids, and the scores those plus the bias. False when they are not all finite.
bool score_sigmoid(const Choice& choice, float* logits, float* scores) {
  double total = 0;
  for (int64_t e = 0; e < choice.experts; ++e) {
    logits[e] = static_cast<float>(1 / (1 + std::exp(-static_cast<double>(logits[e]))));
    scores[e] = logits[e] + choice.bias[e];
    total += scores[e];
  }
  return std::isfinite(total);
}

// The index of the largest value behind `last` in descending order, equal ones by index; -1 is before them all.
template <class Value>
int64_t next_largest(int64_t n, int64_t last, const Value& value) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    const bool left = last < 0 || value(i) < value(last) || (value(i) == value(last) && i > last);
    if (left && (best < 0 || value(i) > value(best))) best = i;
  }
  return best;
}

// Leaves only the experts of the chosen groups with scores above minus infinity.
void keep_groups(const Choice& choice, float* scores) {
  const int64_t size = choice.experts / choice.groups;
  const auto rank = [&](int64_t group) {  // the sum of the two largest scores
    float first = -std::numeric_limits<float>::infinity(), second = first;
    for (const float *s = scores + group * size, *end = s + size; s < end; ++s) {
      if (*s > first) second = first, first = *s;
      else if (*s > second) second = *s;
    }
    return first + second;
  };
  int64_t last = -1;
  for (int64_t n = 0; n < choice.chosen_groups; ++n) last = next_largest(choice.groups, last, rank);
  const float least = rank(last);
  for (int64_t g = 0; g < choice.groups; ++g) {
    const float own = rank(g);
    if (own < least || (own == least && g > last)) std::fill_n(scores + g * size, size, -std::numeric_limits<float>::infinity());
  }
}

}  // namespace

void route(const Choice& choice, float* logits, float* scores, int32_t* ids, float* weights) {
  const bool finite = choice.routing == Routing::softmax ? score_softmax(choice, logits, scores) : score_sigmoid(choice, logits, scores);
  if (!finite) {
    for (int64_t n = 0; n < choice.chosen; ++n) ids[n] = static_cast<int32_t>(n), weights[n] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (choice.chosen_groups < choice.groups) keep_groups(choice, scores);
  int64_t best = -1;
  for (int64_t n = 0; n < choice.chosen; ++n)
    ids[n] = static_cast<int32_t>(best = next_largest(choice.experts, best, [&](int64_t e) { return scores[e]; }));
  std::sort(ids, ids + choice.chosen);
  double total = 0;
  for (int64_t n = 0; n < choice.chosen; ++n) total += logits[ids[n]];
  const double shared = choice.routing == Routing::sigmoid && choice.chosen > 1 ? total + kLeastTotal : 1;
  for (int64_t n = 0; n < choice.chosen; ++n) weights[n] = static_cast<float>(logits[ids[n]] / shared * choice.scale);
}

void Assignments::fit(int64_t experts, int64_t chosen_experts, int64_t d_model, int64_t hidden, int64_t rows) {
  if (rows <= rows_) return;
  const int64_t all = rows * chosen_experts;
  const std::tuple<Rows*, int64_t, int64_t> buffers[] = {
      {&logits, rows, experts}, {&scores, rows, experts}, {&copies, all, d_model}, {&gate, all, hidden}, {&up, all, hidden}};
  int64_t total = 0;
  for (const auto& [buffer, count, width] : buffers) total += count * row_stride(width);
  AlignedArray<float> memory(total), new_weights(all);
  AlignedArray<int32_t> new_ids(all), new_slots(all), new_begins(experts + 1);
  gated.reserve(static_cast<size_t>(experts));
  down.reserve(static_cast<size_t>(experts));
  float* next = memory.data();
  for (const auto& [buffer, count, width] : buffers) {
    *buffer = {next, row_stride(width)};
    next += count * row_stride(width);
  }
  memory_ = std::move(memory);
  weights = std::move(new_weights);
  ids = std::move(new_ids);
  slots = std::move(new_slots);
  begins = std::move(new_begins);
  chosen = chosen_experts;
  rows_ = rows;
}

int64_t Assignments::bytes() const {
  return (memory_.size() + weights.size() + ids.size() + slots.size() + begins.size()) * static_cast<int64_t>(sizeof(float)) + once.bytes();
}

void mixture_of_experts(Team& team, const KernelTable& kernels, QuantizedRows& quantized, const Linear& router, const Choice& choice,
                        const std::vector<Expert>& experts, Rows h, int64_t rows, Assignments& a, Rows x) {
  const int64_t count = router.channels(), d_model = router.depth();
  linear(team, kernels, quantized, {product(router, h, rows, a.logits)});
  team.split(rows, 1 + 4096 / count, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      route(choice, a.logits.row(r), a.scores.row(r), &a.ids[r * a.chosen], &a.weights[r * a.chosen]);
  });
  place(count, rows, a);
  const int64_t grain = 1 + 32768 / (d_model * a.chosen);
  const WeightFormat& format = experts.front().gate_proj.format();
  if (converts(kernels, format)) {
    a.once.convert(team, kernels, h, rows, d_model, format);
    quantized.spread(team, a.once, a.slots.data(), a.chosen);
  } else {
    team.split(rows, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin * a.chosen; i < end * a.chosen; ++i)
        std::memcpy(a.copies.row(a.slots[i]), h.row(i / a.chosen), static_cast<size_t>(d_model) * sizeof(float));
    });
  }

  a.gated.clear();
  a.down.clear();
  for (int64_t e = 0; e < count; ++e) {
    const int64_t begin = a.begins[e], copies = a.begins[e + 1] - begin;
    if (copies == 0) continue;
    const Expert& expert = experts[static_cast<size_t>(e)];
    const Rows in = from(a.copies, begin), gate = from(a.gate, begin), up = from(a.up, begin);
    a.gated.push_back({product(expert.gate_proj, in, copies, gate), product(expert.up_proj, in, copies, up)});
    a.down.push_back(product(expert.down_proj, gate, copies, in));
    a.gated.back().gate.quantized_begin = a.gated.back().up.quantized_begin = a.down.back().quantized_begin = begin;
  }
  std::sort(a.gated.begin(), a.gated.end(), [](const GatedProduct& l, const GatedProduct& r) { return has_more_rows(l.gate, r.gate); });
  std::sort(a.down.begin(), a.down.end(), has_more_rows);
  multiply_gated(team, kernels, quantized, a.gated);
  quantized.convert(team, kernels, a.gate, rows * a.chosen, experts.front().down_proj.depth(), format);
  multiply(team, kernels, quantized, a.down);

  team.split(rows, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * a.chosen; i < end * a.chosen; ++i) {
      const float weight = a.weights[i], *out = a.copies.row(a.slots[i]);
      float* sum = x.row(i / a.chosen);
      for (int64_t j = 0; j < d_model; ++j) sum[j] += weight * out[j];
    }
  });
}

}  // namespace llada
