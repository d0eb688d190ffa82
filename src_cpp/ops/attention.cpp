#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace llada {

int64_t k_width(const AttentionShape& shape) { return shape.kv_heads * shape.head_dim; }

int64_t v_width(const AttentionShape& shape, int64_t panel) { return shape.kv_heads * round_up(shape.head_dim, panel); }

namespace {

// Row by row the keys and values of one head, as `held` gives them in the store's type, to their slots.
template <class T, class Held>
void store_head(const StoreOf<T>& store, const Span& s, int64_t head, int64_t dim, int64_t panel, const int32_t* slots, Rows k, Rows v,
                const Held& held) {
  const int64_t width = round_up(dim, panel);
  T* k_out = store.k + head * store.capacity * dim;
  T* v_out = store.v + head * store.capacity * width;
  for (int64_t row = s.row_begin; row < s.row_begin + s.rows; ++row) {
    const int64_t p = slots[row];
    T* column = k_out + p / panel * panel * dim + p % panel;
    const T* key = held(k.row(row) + head * dim);
    for (int64_t i = 0; i < dim; ++i) column[i * panel] = key[i];
    std::memcpy(v_out + p * width, held(v.row(row) + head * dim), static_cast<size_t>(dim) * sizeof(T));
    std::memset(v_out + p * width + dim, 0, static_cast<size_t>(width - dim) * sizeof(T));
  }
  if (slots[s.row_begin + s.rows - 1] < s.stored() - 1) return;
  for (int64_t p = s.stored(); p < round_up(s.stored(), panel); ++p) {  // the kernel reads whole panels
    T* column = k_out + p / panel * panel * dim + p % panel;
    for (int64_t i = 0; i < dim; ++i) column[i * panel] = 0;
  }
}

// Queries of one request that see the same keys of its store, but for one that each of them may not see.
struct View {
  const Span& span;
  int64_t query_begin;
  int64_t queries;
  int64_t keys;
  const int32_t* hidden;  // [queries]; nullptr: none
};

// A view for each block of a request's queries, which ascend by slot. It ends where the keys of its block do, so that a row's bits depend
// on those alone.
void add_blocks(const Span& s, int64_t queries, int64_t block, const int32_t* slots, std::vector<View>& views) {
  for (int64_t begin = s.query_begin, end = begin + queries; begin < end;) {
    const int64_t block_end = (slots[begin] / block + 1) * block;
    const int64_t next = std::lower_bound(slots + begin, slots + end, block_end) - slots;
    views.push_back({s, begin, next - begin, std::min(block_end, s.keys), nullptr});
    begin = next;
  }
}

}  // namespace

void store_keys(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans, const int32_t* slots,
                Rows k, Rows v) {
  const int64_t panel = kernels.panel, dim = shape.head_dim, width = round_up(dim, panel);
  const int64_t units = static_cast<int64_t>(spans.size()) * shape.kv_heads;
  int64_t rows = 0;  // stored or widened
  for (const Span& s : spans) rows += s.half.k ? s.rows + s.stored() : s.rows;
  const int64_t grain = 1 + 16384 * units / (rows * shape.kv_heads * dim);
  team.split(units, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t u = begin; u < end; ++u) {
      const Span& s = spans[static_cast<size_t>(u / shape.kv_heads)];
      const int64_t head = u % shape.kv_heads;
      if (!s.half.k) {
        store_head(s.store, s, head, dim, panel, slots, k, v, [](const float* x) { return x; });
        continue;
      }
      uint16_t narrow[kMaxHeadDim];
      store_head(s.half, s, head, dim, panel, slots, k, v, [&](const float* x) {
        kernels.narrow_f16(x, narrow, static_cast<size_t>(dim));
        return narrow;
      });
      kernels.widen_f16(s.half.k + head * s.half.capacity * dim, s.store.k + head * s.store.capacity * dim,
                        static_cast<size_t>(round_up(s.stored(), panel) * dim));
      kernels.widen_f16(s.half.v + head * s.half.capacity * width, s.store.v + head * s.store.capacity * width,
                        static_cast<size_t>(s.stored() * width));
    }
  });
}

void attention(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans, const int32_t* slots,
               const int32_t* twins, Rows q) {
  const int64_t dim = shape.head_dim, width = round_up(dim, kernels.panel), tile_rows = kernels.attention_rows;
  const int64_t group = shape.heads / shape.kv_heads;  // query heads that share a head of keys
  std::vector<View> views;
  for (const Span& s : spans) {
    const int64_t ordinary = s.queries - s.shadow_queries, shadow_begin = s.query_begin + ordinary;
    if (shape.block > 0) {
      add_blocks(s, ordinary, shape.block, slots, views);
    } else {
      views.push_back({s, s.query_begin, ordinary, s.keys, nullptr});
    }
    if (s.shadow_queries > 0) views.push_back({s, shadow_begin, s.shadow_queries, s.stored(), twins + shadow_begin});
  }
  // A unit is one tile of the queries of one head of keys, row by row and head by head of its group: together they load those keys once.
  // A view's units lie together, its heads in order.
  std::vector<int64_t> unit_begin{0};
  int64_t work = 0;
  for (const View& view : views) {
    unit_begin.push_back(unit_begin.back() + shape.kv_heads * ((view.queries * group + tile_rows - 1) / tile_rows));
    work += view.queries * view.keys * shape.heads * dim;
  }
  const int64_t units = unit_begin.back();
  const int64_t grain = 1 + 100'000 * units / std::max<int64_t>(1, work);
  team.split(units, grain, [&](int64_t begin, int64_t end, int thread) {
    float gathered[kMaxAttentionRows * kMaxHeadDim];
    int32_t hidden[kMaxAttentionRows];
    size_t at = 0;
    for (int64_t u = begin; u < end; ++u) {
      if (team.stopped(thread)) return;
      while (u >= unit_begin[at + 1]) ++at;
      const View& view = views[at];
      const KeyStore& store = view.span.store;
      const int64_t queries = view.queries * group, tiles = (queries + tile_rows - 1) / tile_rows, unit = u - unit_begin[at];
      const int64_t kv_head = unit / tiles, tile_index = unit % tiles, first = queries * tile_index / tiles;
      const int64_t count = queries * (tile_index + 1) / tiles - first;  // tiles are equal within one
      const auto query = [&](int64_t i) {
        return q.row(view.query_begin + (first + i) / group) + (kv_head * group + (first + i) % group) * dim;
      };
      AttentionTile tile;
      tile.q = query(0);
      tile.q_stride = q.stride;
      if (group > 1) {
        for (int64_t i = 0; i < count; ++i) std::memcpy(gathered + i * dim, query(i), static_cast<size_t>(dim) * sizeof(float));
        tile.q = gathered;
        tile.q_stride = static_cast<ptrdiff_t>(dim);
      }
      tile.k = store.k + kv_head * store.capacity * dim;
      tile.v = store.v + kv_head * store.capacity * width;
      tile.out = const_cast<float*>(tile.q);
      tile.out_stride = tile.q_stride;
      tile.rows = static_cast<int>(count);
      tile.keys = static_cast<int>(view.keys);
      tile.head_dim = static_cast<int>(dim);
      tile.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
      if (view.hidden) {
        for (int64_t i = 0; i < count; ++i) hidden[i] = view.hidden[(first + i) / group];
        tile.hidden = hidden;
      }
      kernels.attention_f32(tile);
      for (int64_t i = 0; group > 1 && i < count; ++i)
        std::memcpy(query(i), gathered + i * dim, static_cast<size_t>(dim) * sizeof(float));
    }
  });
}

}  // namespace llada
