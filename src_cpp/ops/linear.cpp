#include "ops/linear.h"

#include <algorithm>
#include <cstring>

#include "ops/convert.h"

namespace llada {

namespace {

// Panels that share one pass over a block of x: x [rows, kDepthBlock] stays in the second-level cache for all of them.
constexpr int64_t kPanelGroup = 8;
constexpr int64_t kTailRows = 64;

template <class T>
void store_element(char* data, int64_t i, T value) {
  std::memcpy(data + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

// The last panel, when it holds fewer channels than a panel: computed in a tile, so that nothing is written past a row of out.
void narrow_panel(const KernelTable& kernels, const Product& p, int64_t panel, int64_t columns, float* scratch) {
  float tile[kTailRows * kMaxPanel];
  const int64_t depth = p.weight->depth(), offset = panel * kernels.panel - p.channel_begin;
  for (int64_t first = 0; first < p.rows; first += kTailRows) {
    const int64_t rows = std::min(kTailRows, p.rows - first);
    for (int64_t r = 0; p.accumulate && r < rows; ++r) {
      std::memset(tile + r * kernels.panel, 0, sizeof(float) * static_cast<size_t>(kernels.panel));
      std::memcpy(tile + r * kernels.panel, p.out.row(first + r) + offset, sizeof(float) * static_cast<size_t>(columns));
    }
    for (int64_t k = 0; k < depth; k += kDepthBlock) {
      const int64_t count = std::min<int64_t>(kDepthBlock, depth - k);
      kernels.gemm_f32(p.x.row(first) + k, p.x.stride, p.weight->block(panel, k, count, scratch), kernels.panel, tile, kernels.panel,
                       static_cast<int>(rows), static_cast<int>(count), p.accumulate || k > 0);
    }
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(p.out.row(first + r) + offset, tile + r * kernels.panel, sizeof(float) * static_cast<size_t>(columns));
  }
}

// Panels [begin, end) of a product, on one thread. False when the team was stopped.
bool run_panels(Team& team, int thread, const KernelTable& kernels, const Product& p, int64_t begin, int64_t end) {
  alignas(64) float scratch[kDepthBlock * kMaxPanel];
  const int64_t depth = p.weight->depth();
  const int64_t whole = std::min(end, p.channel_end / kernels.panel);  // panels with all their channels
  for (int64_t group = begin; group < whole; group += kPanelGroup) {
    const int64_t group_end = std::min(group + kPanelGroup, whole);
    for (int64_t k = 0; k < depth; k += kDepthBlock) {
      const int64_t count = std::min<int64_t>(kDepthBlock, depth - k);
      for (int64_t panel = group; panel < group_end; ++panel) {
        if (team.stopped(thread)) return false;
        kernels.gemm_f32(p.x.data + k, p.x.stride, p.weight->block(panel, k, count, scratch), kernels.panel,
                         p.out.data + panel * kernels.panel - p.channel_begin, p.out.stride, static_cast<int>(p.rows),
                         static_cast<int>(count), p.accumulate || k > 0);
      }
    }
  }
  for (int64_t panel = std::max(begin, whole); panel < end; ++panel) {
    if (team.stopped(thread)) return false;
    narrow_panel(kernels, p, panel, p.channel_end - panel * kernels.panel, scratch);
  }
  return true;
}

int64_t first_panel(const KernelTable& kernels, const Product& p) { return p.channel_begin / kernels.panel; }
int64_t panel_count(const KernelTable& kernels, const Product& p) {
  return (p.channel_end + kernels.panel - 1) / kernels.panel - first_panel(kernels, p);
}

// Panels below which another thread costs more than it saves: about 20 microseconds of arithmetic.
int64_t grain(int64_t rows, int64_t depth, int64_t panel) {
  constexpr int64_t kMultiplyAdds = 400'000;
  return std::max<int64_t>(1, kMultiplyAdds / std::max<int64_t>(1, rows * depth * panel));
}

}  // namespace

Linear::Linear(int64_t channels, int64_t depth, DType dtype, const KernelTable& kernels)
    : channels_(channels),
      depth_(depth),
      panels_((channels + kernels.panel - 1) / kernels.panel),
      panel_(kernels.panel),
      dtype_(dtype),
      kernels_(&kernels),
      data_(panels_ * panel_ * depth * size_of(dtype)) {
  const int64_t last = (panels_ - 1) * panel_ * depth_ * size_of(dtype_);
  std::memset(data_.data() + last, 0, static_cast<size_t>(data_.size() - last));
}

void Linear::load(Team& team, int64_t row_begin, int64_t rows, const void* data, DType dtype) {
  const int64_t first = row_begin / panel_, last = (row_begin + rows - 1) / panel_;
  team.split(last - first + 1, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t p = first + begin; p < first + end; ++p) {
      if (team.stopped(thread)) return;
      const int64_t from = std::max(row_begin, p * panel_), to = std::min(row_begin + rows, (p + 1) * panel_);
      for (int64_t k = 0; k < depth_; ++k) {
        for (int64_t n = from; n < to; ++n) {
          const float value = element(data, dtype, (n - row_begin) * depth_ + k);
          const int64_t at = (p * depth_ + k) * panel_ + n - p * panel_;
          if (dtype_ == DType::float32) {
            store_element(data_.data(), at, value);
          } else {
            store_element(data_.data(), at, float_to_bf16(value));
          }
        }
      }
    }
  });
}

void Linear::row(int64_t channel, float* out) const {
  const int64_t panel = channel / panel_, lane = channel % panel_;
  for (int64_t k = 0; k < depth_; ++k) out[k] = element(data_.data(), dtype_, (panel * depth_ + k) * panel_ + lane);
}

const float* Linear::block(int64_t panel, int64_t depth_begin, int64_t depth_count, float* scratch) const {
  const int64_t at = (panel * depth_ + depth_begin) * panel_;
  if (dtype_ == DType::float32) return reinterpret_cast<const float*>(data_.data()) + at;
  kernels_->widen_bf16(reinterpret_cast<const uint16_t*>(data_.data()) + at, scratch, static_cast<size_t>(depth_count * panel_));
  return scratch;
}

void linear(Team& team, const KernelTable& kernels, const std::vector<Product>& products) {
  int64_t total = 0, least = 1;
  for (const Product& p : products) {
    total += panel_count(kernels, p);
    least = std::max(least, grain(p.rows, p.weight->depth(), kernels.panel));
  }
  team.split(total, least, [&](int64_t begin, int64_t end, int thread) {
    int64_t offset = 0;
    for (const Product& p : products) {
      const int64_t count = panel_count(kernels, p), first = first_panel(kernels, p);
      const int64_t from = std::max(begin, offset) - offset, to = std::min(end, offset + count) - offset;
      if (from < to && !run_panels(team, thread, kernels, p, first + from, first + to)) return;
      offset += count;
    }
  });
}

void gated_linear(Team& team, const KernelTable& kernels, const Linear& gate, const Linear& up, Rows x, int64_t rows, Rows out,
                  Rows up_out) {
  const Product gate_product = product(gate, x, rows, out), up_product = product(up, x, rows, up_out);
  team.split(gate.panels(), grain(rows, gate.depth(), kernels.panel), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t group = begin; group < end; group += kPanelGroup) {
      const int64_t group_end = std::min(group + kPanelGroup, end);
      if (!run_panels(team, thread, kernels, gate_product, group, group_end)) return;
      if (!run_panels(team, thread, kernels, up_product, group, group_end)) return;
      const int64_t from = group * kernels.panel, to = std::min(group_end * kernels.panel, gate.channels());
      for (int64_t r = 0; r < rows; ++r)
        kernels.silu_mul_f32(out.row(r) + from, up_out.row(r) + from, static_cast<int>(to - from));
    }
  });
}

}  // namespace llada
