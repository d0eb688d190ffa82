#include "ops/linear.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops/convert.h"

namespace llada {

namespace {

// Panels that share one pass over a block of x [rows, depth block], which then stays in the second-level cache for all of them. When the
// whole of x does, panels come one by one: their weights are then one long stream from memory.
constexpr int64_t kPanelGroup = 8;
constexpr int64_t kResidentBytes = 512 << 10;
constexpr int64_t kTailRows = 64;

// Rows of activations that are quantised go through a thread's panels in equal parts of about so many: they and their results then stay
// in the second-level cache, and weights are read once a part: a byte for 192 operations with it, or for 384. Of 64 to 512 the fastest on
// two cores of Zen 4.
constexpr int64_t kPartRows = 96;
// Those of bfloat16 on tile registers, measured on two cores of Emerald Rapids.
constexpr int64_t kPairedPartRows = 192;

// What one thread unpacks weights and widens scales into.
struct Scratch {
  alignas(64) float floats[kRoundedBlock * kMaxPanel];
  alignas(64) int32_t starts[kQuantizedBlock / kMinGroup * kMaxPanel];
  alignas(64) float scales[kQuantizedBlock / kMinGroup * kMaxPanel];
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(floats); }
};
static_assert(sizeof(Scratch::floats) >= static_cast<size_t>(kQuantizedBlock) * kMaxPanel, "a block of bytes fits in a block of floats");

// Elements [begin, begin + count) of unaligned data.
void read_floats(const KernelTable& kernels, const void* data, DType dtype, int64_t begin, int64_t count, float* out) {
  if (dtype == DType::float32) {
    std::memcpy(out, static_cast<const char*>(data) + begin * 4, static_cast<size_t>(count) * sizeof(float));
  } else if (reinterpret_cast<uintptr_t>(data) % alignof(uint16_t) == 0) {
    const auto widen = dtype == DType::float16 ? kernels.widen_f16 : kernels.widen_bf16;
    widen(static_cast<const uint16_t*>(data) + begin, out, static_cast<size_t>(count));
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = element(data, dtype, begin + i);
  }
}

// Whether 4-bit weights are unpacked in registers, by every tile of rows anew, and not into memory for all rows.
bool packed(const KernelTable& kernels, const Product& p) {
  const WeightFormat& format = p.weight->format();
  return format.dtype == DType::int4 && p.rows <= kernels.packed_rows[format.group / 64];
}

// Whether they are unpacked for Winograd's inner product.
bool winograd(const KernelTable& kernels, const Product& p) {
  return kernels.gemm_winograd_u4 && p.weight->format().dtype == DType::int4 && !packed(kernels, p);
}

bool resident(const KernelTable& kernels, const Product& p) {
  int64_t element = sizeof(float);  // of x, in bytes
  if (p.weight->format().quantized()) element = 1;
  if (p.weight->paired()) element = splits(kernels, p.weight->format()) ? 2 * kSplitParts : 2;
  return p.rows * p.weight->depth() * element <= kResidentBytes;
}

int64_t depth_block(const KernelTable& kernels, const Product& p) {
  if (packed(kernels, p)) return resident(kernels, p) ? p.weight->depth() : kQuantizedBlock;
  if (p.weight->format().rounds() || p.weight->paired()) return kRoundedBlock;
  if (!p.weight->format().quantized()) return kDepthBlock;
  return p.weight->format().dtype == DType::int4 ? kernels.block_u4 : kernels.block_u8;
}

// Tile registers, where kernels have them, set up for tiles of so many rows as long as this lives.
class Tiles {
 public:
  Tiles(const KernelTable& kernels, const WeightFormat& format, int64_t rows) : kernels_(kernels) {
    if (!kernels.enter_tiles || !converts(kernels, format) || rows == 0) return;
    kernels.enter_tiles(static_cast<int>(rows), format.quantized() ? std::min(format.group, kTileDepth) : kTileDepth, &before_);
    entered_ = true;
  }
  ~Tiles() {
    if (entered_) kernels_.leave_tiles(before_);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  const KernelTable& kernels_;
  TileSetup before_;
  bool entered_ = false;
};

// Rows [first, first + rows) times one block of one panel, added to out when accumulate.
void block_product(const KernelTable& kernels, const Product& p, const QuantizedRows& quantized, int64_t panel, int64_t k, int64_t first,
                   int64_t rows, float* out, ptrdiff_t out_stride, bool accumulate, Ahead ahead, Scratch& scratch) {
  const int64_t count = std::min(depth_block(kernels, p), p.weight->depth() - k);
  const int64_t row = p.quantized_begin + first;
  if (p.weight->paired()) {
    const Bf16Tile tile{quantized.pairs(row) + k, quantized.stride() / 2, p.weight->pairs(panel, k), kernels.panel * 2, out, out_stride,
                        static_cast<int>(rows), static_cast<int>(round_up(count, kernels.paired_depth)), accumulate, ahead};
    if (splits(kernels, p.weight->format())) kernels.gemm_split_bf16(tile, QuantizedRows::plane(kernels, p.weight->depth()));
    else kernels.gemm_bf16(tile);
    return;
  }
  if (!p.weight->format().quantized()) {
    const bool rounded = p.weight->format().rounds();
    const float* x = rounded ? quantized.floats(row) : p.x.row(first);
    kernels.gemm_f32({x + k, rounded ? quantized.stride() / 4 : p.x.stride, p.weight->block(panel, k, count, scratch.floats), kernels.panel,
                      out, out_stride, static_cast<int>(rows), static_cast<int>(count), accumulate, ahead});
    return;
  }
  QuantizedTile tile;
  tile.group = p.weight->format().group;
  tile.groups = static_cast<int>((count + tile.group - 1) / tile.group);
  const int64_t group = k / tile.group;
  tile.x = quantized.row(row) + k;
  tile.x_stride = quantized.stride();
  tile.x_scales = quantized.scales(group) + row;
  tile.x_sums = quantized.sums(group) + row;
  tile.x_group_stride = quantized.group_stride();
  auto gemm = p.weight->format().dtype == DType::int4 ? kernels.gemm_u4 : kernels.gemm_u8;
  if (packed(kernels, p)) {
    gemm = kernels.gemm_packed_u4;
    tile.w = p.weight->packed_block(panel, k);
    tile.w_stored_scales = p.weight->scales(panel, group);
  } else if (winograd(kernels, p)) {
    gemm = kernels.gemm_winograd_u4;
    tile.w = p.weight->packed_block(panel, k);
    tile.unpacked = scratch.bytes();
    tile.w_starts = scratch.starts;
    tile.x_sums = quantized.winograd_starts(group) + row;
  } else {
    tile.w = p.weight->quantized_block(panel, k, int64_t{tile.groups} * tile.group, scratch.bytes());
  }
  if (!packed(kernels, p)) {
    kernels.widen_f16(p.weight->scales(panel, group), scratch.scales, static_cast<size_t>(tile.groups) * kernels.panel);
    tile.w_scales = scratch.scales;
  }
  tile.c = out;
  tile.c_stride = out_stride;
  tile.rows = static_cast<int>(rows);
  tile.accumulate = accumulate;
  tile.ahead = ahead;
  gemm(tile);
}

// The last panel, when it holds fewer channels than a panel: computed in a tile, so that nothing is written past a row of out.
void narrow_panel(const KernelTable& kernels, const Product& p, const QuantizedRows& quantized, int64_t panel, int64_t columns,
                  Scratch& scratch) {
  float tile[kTailRows * kMaxPanel];
  const int64_t offset = panel * kernels.panel - p.channel_begin;
  for (int64_t first = 0; first < p.rows; first += kTailRows) {
    const int64_t rows = std::min(kTailRows, p.rows - first);
    for (int64_t r = 0; p.accumulate && r < rows; ++r) {
      std::memset(tile + r * kernels.panel, 0, sizeof(float) * static_cast<size_t>(kernels.panel));
      std::memcpy(tile + r * kernels.panel, p.out.row(first + r) + offset, sizeof(float) * static_cast<size_t>(columns));
    }
    const Tiles tiles(kernels, p.weight->format(), rows);
    for (int64_t k = 0; k < p.weight->depth(); k += depth_block(kernels, p))
      block_product(kernels, p, quantized, panel, k, first, rows, tile, kernels.panel, p.accumulate || k > 0, {}, scratch);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(p.out.row(first + r) + offset, tile + r * kernels.panel, sizeof(float) * static_cast<size_t>(columns));
  }
}

int64_t first_panel(const KernelTable& kernels, const Product& p) { return p.channel_begin / kernels.panel; }
int64_t panel_count(const KernelTable& kernels, const Product& p) {
  return (p.channel_end + kernels.panel - 1) / kernels.panel - first_panel(kernels, p);
}

// The first block of a panel, or of a product, before it is read.
Ahead block_ahead(const KernelTable& kernels, const Product& p, int64_t panel) {
  return p.weight->stored(panel, 0, depth_block(kernels, p));
}

Ahead block_ahead(const KernelTable& kernels, const Product& p) { return block_ahead(kernels, p, first_panel(kernels, p)); }

// Panels [begin, end) of a product, which have all their channels, on one thread; `after` is what it reads next. False when the team was
// stopped.
bool run_whole_panels(Team& team, int thread, const KernelTable& kernels, const Product& p, const QuantizedRows& quantized, int64_t begin,
                      int64_t end, Ahead after, Scratch& scratch) {
  const Tiles tiles(kernels, p.weight->format(), p.rows);
  const int64_t panels = resident(kernels, p) ? 1 : kPanelGroup, depth = depth_block(kernels, p);
  for (int64_t group = begin; group < end; group += panels) {
    const int64_t group_end = std::min(group + panels, end);
    for (int64_t k = 0; k < p.weight->depth(); k += depth) {
      for (int64_t panel = group; panel < group_end; ++panel) {
        if (team.stopped(thread)) return false;
        const bool same_depth = panel + 1 < group_end, same_group = same_depth || k + depth < p.weight->depth();
        const Ahead ahead = same_depth   ? p.weight->stored(panel + 1, k, depth)
                            : same_group ? p.weight->stored(group, k + depth, depth)
                            : group_end < end ? block_ahead(kernels, p, group_end) : after;
        block_product(kernels, p, quantized, panel, k, 0, p.rows, p.out.data + panel * kernels.panel - p.channel_begin, p.out.stride,
                      p.accumulate || k > 0, ahead, scratch);
      }
    }
  }
  return true;
}

// Panels [begin, end) of a product, the last of which may hold fewer channels.
bool run_panels(Team& team, int thread, const KernelTable& kernels, const Product& p, const QuantizedRows& quantized, int64_t begin,
                int64_t end, Ahead after) {
  Scratch scratch;
  const int64_t whole = std::min(end, p.channel_end / kernels.panel);
  if (begin < whole && !run_whole_panels(team, thread, kernels, p, quantized, begin, whole, after, scratch)) return false;
  for (int64_t panel = std::max(begin, whole); panel < end; ++panel) {
    if (team.stopped(thread)) return false;
    narrow_panel(kernels, p, quantized, panel, p.channel_end - panel * kernels.panel, scratch);
  }
  return true;
}

// Calls run(first row, end) for the parts of a product until one is stopped, and tells whether none was.
template <class Run>
bool in_parts(const KernelTable& kernels, const Product& p, const Run& run) {
  int64_t parts = 1;
  if (p.weight->format().quantized()) parts = std::max<int64_t>(1, (p.rows + kPartRows / 2) / kPartRows);
  if (p.weight->paired() && kernels.enter_tiles) parts = std::max<int64_t>(1, (p.rows + kPairedPartRows / 2) / kPairedPartRows);
  for (int64_t i = 0; i < parts; ++i)
    if (!run(p.rows * i / parts, p.rows * (i + 1) / parts)) return false;
  return true;
}

Product part(const Product& p, int64_t first, int64_t end) {
  Product rows = p;
  rows.x.data = p.x.row(first);
  rows.out.data = p.out.row(first);
  rows.rows = end - first;
  rows.quantized_begin += first;
  return rows;
}

// Panels [begin, end) of gate and up, and of silu(gate) * up, on one thread; false when the team was stopped.
bool run_gated_panels(Team& team, int thread, const KernelTable& kernels, const Product& gate, const Product& up,
                      const QuantizedRows& quantized, int64_t begin, int64_t end, Ahead after) {
  for (int64_t group = begin; group < end; group += kPanelGroup) {
    const int64_t group_end = std::min(group + kPanelGroup, end);
    const Ahead next = group_end < end ? block_ahead(kernels, gate, group_end) : after;
    if (!run_panels(team, thread, kernels, gate, quantized, group, group_end, block_ahead(kernels, up, group))) return false;
    if (!run_panels(team, thread, kernels, up, quantized, group, group_end, next)) return false;
    const int64_t channel = group * kernels.panel, channels = std::min(group_end * kernels.panel, gate.channel_end) - channel;
    for (int64_t r = 0; r < gate.rows; ++r)
      kernels.silu_mul_f32(gate.out.row(r) + channel, up.out.row(r) + channel, static_cast<int>(channels));
  }
  return true;
}

// Panels below which another thread costs more than it saves: about 20 microseconds of arithmetic.
int64_t grain(int64_t rows, int64_t depth, int64_t panel) {
  constexpr int64_t kMultiplyAdds = 400'000;
  return std::max<int64_t>(1, kMultiplyAdds / std::max<int64_t>(1, rows * depth * panel));
}

// What a panel costs beside the others of its parallel region, where products have different rows: its weights are read and unpacked
// for few rows as for many, in the time of about this many rows.
constexpr int64_t kPanelRows = 8;
int64_t panel_cost(const Product& p) { return (p.rows + kPanelRows) * p.weight->depth(); }

// Panels of a region's products, split over threads by cost: a panel is of the thread in whose share its cost begins.
class Shares {
 public:
  void add(const KernelTable& kernels, const Product& p) {
    total_ += panel_count(kernels, p) * panel_cost(p);
    least_ = std::max(least_, grain(p.rows, p.weight->depth(), kernels.panel) * panel_cost(p));
  }

  // Calls body(begin, end, thread), in units of cost.
  template <class Body>
  void split(Team& team, const Body& body) const {
    team.split(total_, least_, body);
  }

  // The panels [first, second) of the next product in the share [begin, end); `offset` is the cost of those before it.
  static std::pair<int64_t, int64_t> panels(const KernelTable& kernels, const Product& p, int64_t begin, int64_t end, int64_t& offset) {
    const int64_t cost = panel_cost(p), count = panel_count(kernels, p), first = first_panel(kernels, p);
    const auto at = [&](int64_t share) { return first + std::clamp<int64_t>((share - offset + cost - 1) / cost, 0, count); };
    const std::pair<int64_t, int64_t> found{at(begin), at(end)};
    offset += count * cost;
    return found;
  }

 private:
  int64_t total_ = 0, least_ = 1;
};

}  // namespace

Linear::Linear(int64_t channels, int64_t depth, WeightFormat format, const KernelTable& kernels)
    : channels_(channels),
      depth_(depth),
      panels_((channels + kernels.panel - 1) / kernels.panel),
      panel_(kernels.panel),
      groups_(format.quantized() ? (depth + format.group - 1) / format.group : 0),
      stored_depth_(groups_ * format.group),
      paired_((format.rounds() && kernels.gemm_bf16) || splits(kernels, format)),
      format_(format),
      kernels_(&kernels) {
  if (!format.quantized()) stored_depth_ = paired_ ? round_up(depth, kernels.paired_depth) : depth;
  if (format.quantized() && format.group != 32 && format.group != 64 && format.group != 128)
    throw std::invalid_argument("group: expected 32, 64 or 128, found " + std::to_string(format.group));
}

int64_t Linear::data_bytes() const {
  const int64_t elements = panels_ * panel_ * stored_depth_;
  if (format_.dtype == DType::int4) return elements / 2;
  return format_.dtype == DType::int8 ? elements : elements * size_of(format_.dtype);
}

void Linear::allocate() {
  visit([](auto& array, int64_t bytes) { array.allocate(bytes); });
  clear();
}

void Linear::clear() {
  if (panels_ == 0) return;
  const int64_t last = (panels_ - 1) * (data_.size() / panels_);  // where the last panel begins
  if (format_.quantized()) {
    const int64_t last_scales = (panels_ - 1) * groups_ * panel_;
    std::memset(scales_.data() + last_scales, 0, static_cast<size_t>(scales_.size() - last_scales) * sizeof(uint16_t));
    std::memset(data_.data() + last, format_.dtype == DType::int4 ? 0x88 : 128, static_cast<size_t>(data_.size() - last));
    return;
  }
  const int64_t begin = stored_depth_ > depth_ ? 0 : last;
  std::memset(data_.data() + begin, 0, static_cast<size_t>(data_.size() - begin));
}

void Linear::load(Team& team, int64_t row_begin, int64_t rows, const void* data, DType dtype) {
  const int64_t first = row_begin / panel_, last = (row_begin + rows - 1) / panel_;
  team.split(last - first + 1, 1, [&](int64_t begin, int64_t end, int thread) {
    std::vector<float> row(static_cast<size_t>(format_.quantized() ? stored_depth_ : 0));
    for (int64_t p = first + begin; p < first + end; ++p) {
      if (team.stopped(thread)) return;
      const int64_t from = std::max(row_begin, p * panel_), to = std::min(row_begin + rows, (p + 1) * panel_);
      if (format_.quantized()) {
        for (int64_t n = from; n < to; ++n) load_quantized(n, data, dtype, n - row_begin, row);
        continue;
      }
      if (format_.dtype == DType::float32) load_floats<float>(from, to, data, dtype, from - row_begin);
      else load_floats<uint16_t>(from, to, data, dtype, from - row_begin);
    }
  });
}

// Channels [begin, end), which are of one panel, in squares: they lie in rows, and what is stored side by side are their columns.
template <class Element>
void Linear::load_floats(int64_t begin, int64_t end, const void* data, DType dtype, int64_t source_row) {
  constexpr int64_t kSquare = 64;
  Element square[kMaxPanel][kSquare];
  Element* stored = reinterpret_cast<Element*>(data_.data());
  const int64_t panel = begin / panel_, step = paired_ ? 2 : 1, channels = end - begin;
  for (int64_t k = 0; k < depth_; k += kSquare) {
    const int64_t count = std::min(kSquare, depth_ - k);
    for (int64_t n = 0; n < channels; ++n)
      convert_elements(data, dtype, (source_row + n) * depth_ + k, count, square[n], format_.dtype);
    for (int64_t i = 0; i < count; ++i) {
      Element* column = stored + place(panel, k + i, begin - panel * panel_);
      for (int64_t n = 0; n < channels; ++n) column[n * step] = square[n][i];
    }
  }
}

void Linear::load_quantized(int64_t channel, const void* data, DType dtype, int64_t source_row, std::vector<float>& row) {
  const int group = format_.group;
  uint8_t codes[kMaxGroup];
  read_floats(*kernels_, data, dtype, source_row * depth_, depth_, row.data());
  for (int64_t g = 0; g < groups_; ++g) {
    const int count = static_cast<int>(std::min<int64_t>(group, depth_ - g * group));
    const float scale = quantize_group(*kernels_, row.data() + g * group, count, format_.dtype, codes);
    std::memset(codes + count, zero_point(format_.dtype), static_cast<size_t>(group - count));
    store_group(channel, g, codes, scale);
  }
}

bool Linear::load_integers(Team& team, int64_t row_begin, int64_t rows, const int8_t* values, const float* scales, int group) {
  if (!format_.quantized() || group != format_.group || depth_ % group != 0) return false;
  const bool four = format_.dtype == DType::int4;
  const int zero = zero_point(format_.dtype), lowest = four ? -8 : -127, highest = four ? 7 : 127;
  const auto [least, most] = std::minmax_element(values, values + rows * depth_);
  if (*least < lowest || *most > highest || !std::all_of(scales, scales + rows * groups_, is_f16)) return false;
  const int64_t first = row_begin / panel_, last = (row_begin + rows - 1) / panel_;
  team.split(last - first + 1, 1, [&](int64_t begin, int64_t end, int thread) {  // whole panels, as in load
    uint8_t codes[kMaxGroup];
    const int64_t to = std::min(row_begin + rows, (first + end) * panel_);
    for (int64_t n = std::max(row_begin, (first + begin) * panel_); n < to; ++n) {
      if (team.stopped(thread)) return;
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t at = (n - row_begin) * groups_ + g;
        for (int i = 0; i < group; ++i) codes[i] = static_cast<uint8_t>(values[at * group + i] + zero);
        store_group(n, g, codes, scales[at]);
      }
    }
  });
  return true;
}

// Codes [group] of one group of a channel, in their places.
void Linear::store_group(int64_t channel, int64_t group, const uint8_t* codes, float scale) {
  const int64_t panel = channel / panel_, lane = channel % panel_;
  uint8_t* packed = reinterpret_cast<uint8_t*>(data_.data());
  store_element(scales_.data(), DType::float16, (panel * groups_ + group) * panel_ + lane, scale);
  const int64_t begin = (panel * groups_ + group) * format_.group;  // depth, counted over all panels
  const int step = format_.dtype == DType::int8 ? 4 : 8;            // to four bytes
  for (int i = 0; i < format_.group; i += step) {
    uint8_t* four = packed + ((begin + i) / step * panel_ + lane) * 4;
    for (int j = 0; j < 4; ++j) four[j] = step == 4 ? codes[i + j] : static_cast<uint8_t>(codes[i + j] | codes[i + 4 + j] << 4);
  }
}

void Linear::row(int64_t channel, float* out) const {
  const int64_t panel = channel / panel_, lane = channel % panel_;
  if (!format_.quantized()) {
    for (int64_t k = 0; k < depth_; ++k) out[k] = element(data_.data(), format_.dtype, place(panel, k, lane));
    return;
  }
  const uint8_t* packed = reinterpret_cast<const uint8_t*>(data_.data());
  for (int64_t i = 0; i < depth_; ++i) {
    const int64_t k = panel * stored_depth_ + i;
    const int code = format_.dtype == DType::int8 ? packed[(k / 4 * panel_ + lane) * 4 + k % 4]
                                                  : packed[(k / 8 * panel_ + lane) * 4 + k % 4] >> (k / 4 % 2 * 4) & 15;
    out[i] = f16_to_float(scales(panel, i / format_.group)[lane]) * static_cast<float>(code - zero_point(format_.dtype));
  }
}

Ahead Linear::stored(int64_t panel, int64_t depth_begin, int64_t depth_count) const {
  const int64_t begin = panel * stored_depth_ + depth_begin;
  const int64_t count = std::min(depth_count, stored_depth_ - depth_begin), line = data_bytes() / (panels_ * stored_depth_);
  return {data_.data() + begin * line, static_cast<ptrdiff_t>(count * line),
          format_.quantized() ? scales(panel, depth_begin / format_.group) : nullptr};
}

int64_t Linear::place(int64_t panel, int64_t k, int64_t lane) const {
  const int64_t before = panel * stored_depth_;
  return paired_ ? (before + k / 2 * 2) * panel_ + lane * 2 + 1 - k % 2 : (before + k) * panel_ + lane;
}

const uint16_t* Linear::pairs(int64_t panel, int64_t depth_begin) const {
  return reinterpret_cast<const uint16_t*>(data_.data()) + (panel * stored_depth_ + depth_begin) * panel_;
}

const float* Linear::block(int64_t panel, int64_t depth_begin, int64_t depth_count, float* scratch) const {
  const int64_t at = (panel * depth_ + depth_begin) * panel_;
  if (format_.dtype == DType::float32) return reinterpret_cast<const float*>(data_.data()) + at;
  const auto widen = format_.dtype == DType::float16 ? kernels_->widen_f16 : kernels_->widen_bf16;
  widen(reinterpret_cast<const uint16_t*>(data_.data()) + at, scratch, static_cast<size_t>(depth_count * panel_));
  return scratch;
}

const uint8_t* Linear::packed_block(int64_t panel, int64_t depth_begin) const {
  return reinterpret_cast<const uint8_t*>(data_.data()) + (panel * stored_depth_ + depth_begin) * panel_ / 2;
}

const uint8_t* Linear::quantized_block(int64_t panel, int64_t depth_begin, int64_t depth_count, uint8_t* scratch) const {
  const int64_t at = (panel * stored_depth_ + depth_begin) * panel_;
  if (format_.dtype == DType::int8) return reinterpret_cast<const uint8_t*>(data_.data()) + at;
  kernels_->unpack_u4(packed_block(panel, depth_begin), scratch, static_cast<size_t>(depth_count * panel_ / 2));
  return scratch;
}

void linear(Team& team, const KernelTable& kernels, QuantizedRows& quantized, const std::vector<Product>& products) {
  const Product* converted = nullptr;
  for (const Product& p : products) {
    const WeightFormat& format = p.weight->format();
    if (!converts(kernels, format)) continue;
    if (converted && (format.dtype != converted->weight->format().dtype || format.group != converted->weight->format().group))
      throw std::invalid_argument("products of one region: expected one format of weights, found two");
    if (!converted) quantized.convert(team, kernels, p.x, p.rows, p.weight->depth(), format);
    converted = &p;
  }
  multiply(team, kernels, quantized, products);
}

void multiply(Team& team, const KernelTable& kernels, const QuantizedRows& quantized, const std::vector<Product>& products) {
  Shares shares;
  for (const Product& p : products) shares.add(kernels, p);
  shares.split(team, [&](int64_t begin, int64_t end, int thread) {
    int64_t offset = 0;
    for (auto p = products.begin(); p != products.end(); ++p) {
      const auto [from, to] = Shares::panels(kernels, *p, begin, end, offset);
      if (from == to) continue;
      const Ahead after = offset < end && p + 1 != products.end() ? block_ahead(kernels, p[1]) : Ahead{};
      const bool done = in_parts(kernels, *p, [&, from = from, to = to](int64_t first, int64_t last) {
        const Product rows = part(*p, first, last);
        return run_panels(team, thread, kernels, rows, quantized, from, to, last < p->rows ? block_ahead(kernels, rows, from) : after);
      });
      if (!done) return;
    }
  });
}

void multiply_gated(Team& team, const KernelTable& kernels, const QuantizedRows& quantized, const std::vector<GatedProduct>& products) {
  Shares shares;
  for (const GatedProduct& p : products) shares.add(kernels, p.gate);
  shares.split(team, [&](int64_t begin, int64_t end, int thread) {
    int64_t offset = 0;
    for (auto p = products.begin(); p != products.end(); ++p) {
      const auto& [gate, up] = *p;
      const auto [from, to] = Shares::panels(kernels, gate, begin, end, offset);
      if (from == to) continue;
      const Ahead after = offset < end && p + 1 != products.end() ? block_ahead(kernels, p[1].gate) : Ahead{};
      const bool done = in_parts(kernels, gate, [&, from = from, to = to](int64_t first, int64_t last) {
        const Product gate_rows = part(p->gate, first, last), up_rows = part(p->up, first, last);
        const Ahead next = last < p->gate.rows ? block_ahead(kernels, gate_rows, from) : after;
        return run_gated_panels(team, thread, kernels, gate_rows, up_rows, quantized, from, to, next);
      });
      if (!done) return;
    }
  });
}

void gated_linear(Team& team, const KernelTable& kernels, QuantizedRows& quantized, const Linear& gate, const Linear& up, Rows x,
                  int64_t rows, Rows out, Rows up_out) {
  quantized.convert(team, kernels, x, rows, gate.depth(), gate.format());
  multiply_gated(team, kernels, quantized, {{product(gate, x, rows, out), product(up, x, rows, up_out)}});
}

}  // namespace llada
