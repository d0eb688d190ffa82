#include <stdint.h>

// The vector type comes first: the kernels are written over it.
#define LLADA_VNNI 1
#include "kernels/vec_avx512.h"

#include "kernels/tiles-inl.h"

namespace llada {

namespace {

constexpr KernelTable with_tiles(KernelTable table) {
  table.gemm_bf16 = gemm_tiles_bf16;
  table.gemm_split_bf16 = gemm_split_bf16;
  table.split_pairs = split_pairs;
  table.paired_depth = kTileBytes / 2;
  table.enter_tiles = enter_tiles;
  table.leave_tiles = leave_tiles;
  table.gemm_u4 = gemm_integer_tiles<Dot4, Weights::unpacked>;
  table.gemm_u8 = gemm_integer_tiles<Dot8, Weights::bytes>;
  for (int i = 0; i < 3; ++i) table.packed_rows[i] = least_tile_rows(Weights::unpacked, kMinGroup << i) - 1;
  // Beside x, whose rows are read again for every panel, unpacked weights stay in the first-level cache.
  table.block_u4 = 256;
  table.block_u8 = 512;
  return table;
}

}  // namespace

const KernelTable kAvx512AmxKernels = with_tiles(make_table("avx512amx"));

}  // namespace llada
