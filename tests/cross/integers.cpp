// Integer weights: their matrix products, their packing, and the rounding of activations.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "comparisons.h"
#include "ops/convert.h"

namespace cross {
namespace {

using llada::f16_to_float;
using llada::float_to_f16;
using llada::QuantizedTile;

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
  Buffer<float> w_scales;  // [groups, kChannels] that float16 holds
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

// Of 4 bits a tile takes bases and starts: see QuantizedTile.
void prepare(int bits, Buffer<float>& scales, Buffer<int32_t>& sums) {
  for (int i = 0; bits == 4 && i < scales.size(); ++i) {
    scales[i] *= 0x1.8p23f;
    int32_t start;
    std::memcpy(&start, &scales[i], sizeof start);
    sums[i] = start - 8 * sums[i];
  }
}

Buffer<float> multiply(const KernelTable& table, int bits, const Integers& in, int first, int rows, bool accumulate, Check& check) {
  const int stride = kChannels + kGap, depth = in.depth();
  Buffer<float> out(rows * stride, NAN);
  Buffer<int32_t> sums(in.groups * in.rows);
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < depth; ++k) sums[k / in.group * in.rows + first + r] += in.x[(first + r) * depth + k];
    for (int j = 0; accumulate && j < kChannels; ++j) out[r * stride + j] = in.c[(first + r) * kChannels + j];
  }
  Buffer<float> x_scales = in.x_scales;
  prepare(bits, x_scales, sums);
  Buffer<float> unpacking = out;  // what weights give that are still two a byte
  for (int begin = 0; begin < kChannels; begin += table.panel) {
    Buffer<uint8_t> panel(depth * table.panel);
    Buffer<float> scales(in.groups * table.panel);
    Buffer<uint16_t> stored_scales(in.groups * table.panel);
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < table.panel; ++j)
        panel[(k / 4 * table.panel + j) * 4 + k % 4] = in.w[k * kChannels + begin + j];
    for (int g = 0; g < in.groups; ++g)
      for (int j = 0; j < table.panel; ++j) {
        scales[g * table.panel + j] = in.w_scales[g * kChannels + begin + j];
        stored_scales[g * table.panel + j] = float_to_f16(in.w_scales[g * kChannels + begin + j]);
      }
    QuantizedTile tile;
    tile.x = in.x.data() + first * depth;
    tile.x_stride = depth;
    tile.x_scales = x_scales.data() + first;
    tile.x_sums = sums.data() + first;
    tile.x_group_stride = in.rows;
    tile.w = panel.data();
    tile.w_scales = scales.data();
    tile.w_stored_scales = stored_scales.data();
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

            for (int i = 0; i < in.x_scales.size(); ++i)
              in.x_scales[i] = codes.bits == 4 ? std::ldexp(1.0f, uniform(-20, 3)) : std::abs(normal());
            for (int i = 0; i < in.w_scales.size(); ++i) in.w_scales[i] = f16_to_float(float_to_f16(normal()));
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
// A NaN is the default one of aarch64 in both builds, and so are the starts of its group.
void quantize(const KernelTable& table, const KernelTable& scalar, int bits) {
  Check check(table, bits == 4 ? "quantize_q8_for_u4" : "quantize_q8");
  const auto compare = [&](const Buffer<float>& x, int group) {
    const int n = x.size(), groups = (n + group - 1) / group;
    Buffer<int8_t> q(groups * group, 99), wanted_q = q;
    const int stride = 1 + n % 3;
    Buffer<float> scales(groups * stride, 7.0f), wanted_scales = scales;
    Buffer<int32_t> sums(groups * stride, 7), wanted_sums = sums, winograd = sums, wanted_winograd = sums;
    if (bits == 4) {
      table.quantize_q8_for_u4(x.data(), q.data(), scales.data(), sums.data(), winograd.data(), stride, n, group);
      scalar.quantize_q8_for_u4(x.data(), wanted_q.data(), wanted_scales.data(), wanted_sums.data(), wanted_winograd.data(), stride, n,
                                group);
    } else {
      table.quantize_q8(x.data(), q.data(), scales.data(), sums.data(), stride, n, group);
      scalar.quantize_q8(x.data(), wanted_q.data(), wanted_scales.data(), wanted_sums.data(), stride, n, group);
    }
    check.same(winograd, wanted_winograd);
    check.guards(winograd);
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

// Products and sums are rounded one by one in every build.
void scale_sums(const KernelTable& table, const KernelTable& scalar) {
  Check check(table, "scale_sums");
  for (int n : {8, 32, 56, 64, 128})
    for (const char* fill : kFills) {
      check.at(text({{"n", n}}, fill));
      const Buffer<float> w = filled(fill, n), inverses = normals(llada::kScaleCandidates);
      const int size = llada::kScaleCandidates * llada::kSumLanes;
      Buffer<float> w_q(size, 7.0f), q_q = w_q, wanted_w_q = w_q, wanted_q_q = w_q;
      table.scale_sums(w.data(), n, inverses.data(), -8, 7, w_q.data(), q_q.data());
      scalar.scale_sums(w.data(), n, inverses.data(), -8, 7, wanted_w_q.data(), wanted_q_q.data());
      check.same(w_q, wanted_w_q);
      check.same(q_q, wanted_q_q);
      check.guards(w_q);
      check.guards(q_q);
    }
}

}  // namespace

void integer_gemms(const KernelTable& table, const KernelTable& scalar) {
  quantized(table, scalar, {"gemm_u4", 4});
  quantized(table, scalar, {"gemm_u8", 8});
  unpack(table);
  quantize(table, scalar, 8);
  quantize(table, scalar, 4);
  scale_sums(table, scalar);
}

}  // namespace cross
