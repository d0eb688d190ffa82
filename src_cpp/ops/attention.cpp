#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace llada {

namespace {

int64_t v_width(const AttentionShape& shape, int64_t panel) { return round_up(shape.head_dim, panel); }
int64_t padded_keys(int64_t keys, int64_t panel) { return round_up(keys, panel); }

// First float of every request's keys and values, in span order.
struct Offsets {
  std::vector<int64_t> k, v;
};

Offsets offsets(const AttentionShape& shape, int64_t panel, const std::vector<Span>& spans) {
  Offsets at;
  int64_t k = 0, v = 0;
  for (const Span& s : spans) {
    at.k.push_back(k);
    at.v.push_back(v);
    k += shape.kv_heads * padded_keys(s.keys, panel) * shape.head_dim;
    v += shape.kv_heads * s.keys * v_width(shape, panel);
  }
  return at;
}

}  // namespace

int64_t PackedKeys::k_size(const AttentionShape& shape, int64_t panel, int64_t rows, int64_t requests) {
  return shape.kv_heads * shape.head_dim * (rows + requests * (panel - 1));
}

int64_t PackedKeys::v_size(const AttentionShape& shape, int64_t panel, int64_t rows) {
  return shape.kv_heads * v_width(shape, panel) * rows;
}

void pack_keys(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans, Rows k, Rows v,
               PackedKeys& packed) {
  const int64_t panel = kernels.panel, dim = shape.head_dim, width = v_width(shape, panel);
  const Offsets at = offsets(shape, panel, spans);
  const int64_t units = static_cast<int64_t>(spans.size()) * shape.kv_heads;
  int64_t rows = 0;
  for (const Span& s : spans) rows += s.keys;
  const int64_t grain = 1 + 16384 * units / (rows * shape.kv_heads * dim);
  team.split(units, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t u = begin; u < end; ++u) {
      const size_t request = static_cast<size_t>(u / shape.kv_heads);
      const int64_t head = u % shape.kv_heads;
      const Span& s = spans[request];
      float* k_out = packed.k.data() + at.k[request] + head * padded_keys(s.keys, panel) * dim;
      float* v_out = packed.v.data() + at.v[request] + head * s.keys * width;
      for (int64_t t = 0; t < padded_keys(s.keys, panel); ++t) {
        float* column = k_out + t / panel * panel * dim + t % panel;
        const float* row = t < s.keys ? k.row(s.row_begin + t) + head * dim : nullptr;
        for (int64_t i = 0; i < dim; ++i) column[i * panel] = row ? row[i] : 0.0f;
      }
      for (int64_t t = 0; t < s.keys; ++t) {
        std::memcpy(v_out + t * width, v.row(s.row_begin + t) + head * dim, static_cast<size_t>(dim) * sizeof(float));
        std::memset(v_out + t * width + dim, 0, static_cast<size_t>(width - dim) * sizeof(float));
      }
    }
  });
}

void attention(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans,
               const PackedKeys& packed, Rows q) {
  const int64_t panel = kernels.panel, dim = shape.head_dim, width = v_width(shape, panel), tile_rows = kernels.attention_rows;
  const Offsets at = offsets(shape, panel, spans);
  // A unit is one tile of queries of one head; a request's units lie together, its heads in order.
  std::vector<int64_t> unit_begin{0};
  int64_t work = 0;
  for (const Span& s : spans) {
    unit_begin.push_back(unit_begin.back() + shape.heads * ((s.queries + tile_rows - 1) / tile_rows));
    work += s.queries * s.keys * shape.heads * dim;
  }
  const int64_t units = unit_begin.back();
  const int64_t grain = 1 + 100'000 * units / std::max<int64_t>(1, work);
  team.split(units, grain, [&](int64_t begin, int64_t end, int thread) {
    size_t request = 0;
    for (int64_t u = begin; u < end; ++u) {
      if (team.stopped(thread)) return;
      while (u >= unit_begin[request + 1]) ++request;
      const Span& s = spans[request];
      const int64_t tiles = (s.queries + tile_rows - 1) / tile_rows, unit = u - unit_begin[request];
      const int64_t head = unit / tiles, first = unit % tiles * tile_rows, kv_head = head / (shape.heads / shape.kv_heads);
      AttentionTile tile;
      tile.q = q.row(s.query_begin + first) + head * dim;
      tile.q_stride = q.stride;
      tile.k = packed.k.data() + at.k[request] + kv_head * padded_keys(s.keys, panel) * dim;
      tile.v = packed.v.data() + at.v[request] + kv_head * s.keys * width;
      tile.out = q.row(s.query_begin + first) + head * dim;
      tile.out_stride = q.stride;
      tile.rows = static_cast<int>(std::min(tile_rows, s.queries - first));
      tile.keys = static_cast<int>(s.keys);
      tile.head_dim = static_cast<int>(dim);
      tile.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
      kernels.attention_f32(tile);
    }
  });
}

}  // namespace llada
