// Bidirectional attention within each request of a ragged batch.
#pragma once

#include <vector>

#include "ops/linear.h"

namespace llada {

// Where a request lies in the flat rows of a batch.
struct Span {
  int64_t row_begin;    // of its keys
  int64_t keys;
  int64_t query_begin;  // of its queries, among the rows that have one
  int64_t queries;
};

struct AttentionShape {
  int64_t heads;
  int64_t kv_heads;  // query head h reads keys and values of head h / (heads / kv_heads)
  int64_t head_dim;
};

// Keys and values of all requests, laid out for the attention kernel.
struct PackedKeys {
  AlignedArray<float> k;  // a request: [kv_heads][ceil(keys / panel)][head_dim][panel]
  AlignedArray<float> v;  // a request: [kv_heads][keys][head_dim rounded up to a panel]
  // Floats of k and v for `rows` rows in `requests` requests, whatever their lengths.
  static int64_t k_size(const AttentionShape& shape, int64_t panel, int64_t rows, int64_t requests);
  static int64_t v_size(const AttentionShape& shape, int64_t panel, int64_t rows);
};

// k, v: [rows, kv_heads * head_dim]
void pack_keys(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans, Rows k, Rows v,
               PackedKeys& packed);

// q [queries, heads * head_dim] becomes softmax(q . k^T / sqrt(head_dim)) . v, in place.
void attention(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans,
               const PackedKeys& packed, Rows q);

}  // namespace llada
