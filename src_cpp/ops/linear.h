// out = x . W^T, with W packed in panels of output channels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "base/team.h"
#include "kernels/table.h"
#include "llada/types.h"
#include "ops/quantize.h"
#include "ops/rows.h"

namespace llada {

// A weight matrix [channels, depth] stored as panels [ceil(channels / panel)], the last one zero-padded: floats [depth][panel], or
// [depth / 2][panel][2] where the kernels take bfloat16 in pairs, with zeros up to their paired_depth; 8-bit integers [depth / 4][panel][4];
// 4-bit integers two a byte, [depth / 8][panel][4]. Integers have float16 scales [depth / group][panel], and a depth rounded up to whole
// groups.
class Linear {
 public:
  Linear() = default;
  Linear(int64_t channels, int64_t depth, WeightFormat format, const KernelTable& kernels);

  // Memory of its own for the weights, which are to be loaded.
  void allocate();

  // Zeros in what no channel fills, of memory that the weights have.
  void clear();

  // Calls f with each array and the bytes that it has or will have, in an order that never changes.
  template <class F>
  void visit(const F& f) {
    f(data_, data_bytes());
    if (format_.quantized()) f(scales_, panels_ * groups_ * panel_ * static_cast<int64_t>(sizeof(uint16_t)));
  }

  // Packs, and quantises, rows [row_begin, row_begin + rows) of the matrix. Throws std::out_of_range for a value beyond float16 in that
  // format, or a scale; the rows are then undefined.
  void load(Team& team, int64_t row_begin, int64_t rows, const void* data, DType dtype);

  // Packs rows that are integers already, values [rows, depth] with scales [rows, depth / group], as they are. False, and nothing is
  // packed, when the format has other groups or not all of these values and scales.
  bool load_integers(Team& team, int64_t row_begin, int64_t rows, const int8_t* values, const float* scales, int group);

  // out[depth] = row `channel` of the matrix.
  void row(int64_t channel, float* out) const;

  int64_t channels() const { return channels_; }
  int64_t depth() const { return depth_; }
  int64_t panels() const { return panels_; }
  int64_t bytes() const { return data_.size() + scales_.size() * static_cast<int64_t>(sizeof(uint16_t)); }
  const WeightFormat& format() const { return format_; }

  // The bytes of a block as stored.
  Ahead stored(int64_t panel, int64_t depth_begin, int64_t depth_count) const;

  // Whether a block is bfloat16 in pairs, [depth_count / 2][panel][2], and the block.
  bool paired() const { return paired_; }
  const uint16_t* pairs(int64_t panel, int64_t depth_begin) const;

  // The float32 block [depth_count, panel] of a panel: in place, or widened into scratch [depth_count, kMaxPanel].
  const float* block(int64_t panel, int64_t depth_begin, int64_t depth_count, float* scratch) const;

  // The 8-bit block [depth_count / 4][panel][4] of a panel: in place, or unpacked into scratch [kQuantizedBlock * kMaxPanel].
  const uint8_t* quantized_block(int64_t panel, int64_t depth_begin, int64_t depth_count, uint8_t* scratch) const;
  // The same of 4-bit weights as they are stored, [depth_count / 8][panel][4].
  const uint8_t* packed_block(int64_t panel, int64_t depth_begin) const;
  const uint16_t* scales(int64_t panel, int64_t group) const { return scales_.data() + (panel * groups_ + group) * panel_; }

 private:
  int64_t data_bytes() const;
  int64_t place(int64_t panel, int64_t k, int64_t lane) const;  // of a float among all
  template <class Element>
  void load_floats(int64_t begin, int64_t end, const void* data, DType dtype, int64_t source_row);
  void load_quantized(int64_t channel, const void* data, DType dtype, int64_t source_row, std::vector<float>& row);
  void store_group(int64_t channel, int64_t group, const uint8_t* codes, float scale);

  int64_t channels_ = 0, depth_ = 0, panels_ = 0, panel_ = 0, groups_ = 0;
  int64_t stored_depth_ = 0;  // whole groups or pairs
  bool paired_ = false;
  WeightFormat format_ = DType::float32;
  const KernelTable* kernels_ = nullptr;
  AlignedArray<char> data_;
  AlignedArray<uint16_t> scales_;
};

// One matrix product of a parallel region.
struct Product {
  const Linear* weight;
  Rows x;               // [rows, depth]
  int64_t rows;
  Rows out;             // [rows, channel_end - channel_begin]
  bool accumulate;      // add to out
  int64_t channel_begin;  // a multiple of kMaxPanel
  int64_t channel_end;
  int64_t quantized_begin = 0;  // row of x among those that were converted
};

inline Product product(const Linear& weight, Rows x, int64_t rows, Rows out, bool accumulate = false) {
  return {&weight, x, rows, out, accumulate, 0, weight.channels()};
}

// gate.out = silu(gate.x . gate^T) * (up.x . up^T); up.out is scratch. Both have the same x and shape.
struct GatedProduct {
  Product gate, up;
};

// All products in one parallel region. Those whose weights want rows in their own format have the same x, which is converted first, and
// the same format: std::invalid_argument if not.
void linear(Team& team, const KernelTable& kernels, QuantizedRows& quantized, const std::vector<Product>& products);

// The same of any rows of x that are converted already, where weights want that. The products' rows may differ in number.
void multiply(Team& team, const KernelTable& kernels, const QuantizedRows& quantized, const std::vector<Product>& products);
void multiply_gated(Team& team, const KernelTable& kernels, const QuantizedRows& quantized, const std::vector<GatedProduct>& products);

// out = silu(x . gate^T) * (x . up^T); `up_out` is scratch of out's shape.
void gated_linear(Team& team, const KernelTable& kernels, QuantizedRows& quantized, const Linear& gate, const Linear& up, Rows x,
                  int64_t rows, Rows out, Rows up_out);

}  // namespace llada
