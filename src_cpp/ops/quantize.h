// From floats to small integers with a scale for each group, for weights and for activations.
#pragma once

#include "base/aligned.h"
#include "base/team.h"
#include "kernels/table.h"
#include "llada/types.h"
#include "ops/rows.h"

namespace llada {

// Zero point of the unsigned codes: code - zero is the integer.
constexpr int zero_point(DType dtype) { return dtype == DType::int4 ? 8 : 128; }

// Codes of a group of weights and their scale, w ~ scale (code - zero): of several scales around the plain one, that with the least
// squared error, fitted to its integers and rounded to float16. A group that is not finite gets a NaN scale. Throws std::out_of_range for a
// weight whose scale would be beyond float16.
float quantize_group(const KernelTable& kernels, const float* w, int count, DType dtype, uint8_t* codes);

// Whether activations are converted for weights of a format, and whether to sums of bfloat16 numbers.
inline bool splits(const KernelTable& kernels, const WeightFormat& format) {
  return format.dtype == DType::bfloat16 && kernels.gemm_split_bf16;
}
inline bool converts(const KernelTable& kernels, const WeightFormat& format) {
  return format.quantized() || format.rounds() || splits(kernels, format);
}

// Activations as their weights take them, 8-bit integers or bfloat16, kept from call to call and grown to the largest.
class QuantizedRows {
 public:
  // Converts x [rows, width] for weights of a format where `converts`; every row by itself.
  void convert(Team& team, const KernelTable& kernels, Rows x, int64_t rows, int64_t width, const WeightFormat& format);

  // Row slots[i * copies + n] is row i of others, for n < copies.
  void spread(Team& team, const QuantizedRows& others, const int32_t* slots, int64_t copies);

  // Integers, beside 4-bit weights with starts for gemm_winograd_u4 where the kernels have that; and bfloat16, in pairs where they have
  // gemm_bf16, as float32 where not; and the bfloat16 numbers that a row is the sum of, plane(width) apart.
  const int8_t* row(int64_t i) const { return codes_.data() + i * stride_; }
  const uint16_t* pairs(int64_t i) const { return reinterpret_cast<const uint16_t*>(row(i)); }
  static int64_t plane(const KernelTable& kernels, int64_t width) { return round_up(width, kernels.paired_depth); }
  const float* floats(int64_t i) const { return reinterpret_cast<const float*>(row(i)); }
  const float* scales(int64_t group) const { return scales_.data() + group * group_stride_; }
  const int32_t* sums(int64_t group) const { return sums_.data() + group * group_stride_; }
  const int32_t* winograd_starts(int64_t group) const { return winograd_starts_.data() + group * group_stride_; }
  ptrdiff_t stride() const { return stride_; }  // in bytes
  ptrdiff_t group_stride() const { return group_stride_; }
  int64_t bytes() const { return codes_.size() + (scales_.size() + sums_.size() + winograd_starts_.size()) * 4; }

 private:
  void quantize(Team& team, const KernelTable& kernels, Rows x, int64_t rows, int64_t width, const WeightFormat& format);
  void round(Team& team, const KernelTable& kernels, Rows x, int64_t rows, int64_t width, int parts);
  void fit(int64_t rows, int64_t row_bytes, int64_t groups, bool winograd);

  ptrdiff_t stride_ = 0, rows_ = 0, groups_ = 0, group_stride_ = 0;
  bool winograd_ = false;
  AlignedArray<int8_t> codes_;   // [rows, stride]
  AlignedArray<float> scales_;   // [groups, group_stride]: those of a tile of rows lie side by side; as QuantizedTile takes them
  AlignedArray<int32_t> sums_;   // [groups, group_stride]
  AlignedArray<int32_t> winograd_starts_;  // [groups, group_stride] or nothing
};

}  // namespace llada
