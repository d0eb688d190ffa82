// Attention within each request of a ragged batch: to all of its keys, or to those up to the end of a row's own block.
#pragma once

#include <vector>

#include "ops/linear.h"

namespace llada {

// Keys and values of one request in one layer, laid out for the attention kernel.
template <class T>
struct StoreOf {
  T* k;              // [kv_heads][capacity / panel][head_dim][panel]
  T* v;              // [kv_heads][capacity][head_dim rounded up to a panel]
  int64_t capacity;  // keys there is room for, a multiple of the panel
};
using KeyStore = StoreOf<float>;
using HalfStore = StoreOf<uint16_t>;  // float16

// One request of a batch: its new rows, and the keys that they see. Its last rows may be shadows (RaggedBatch::twins).
struct Span {
  int64_t row_begin;       // of its rows in the flat batch
  int64_t rows;            // shadows included
  int64_t keys;            // slots [0, keys) of its store are seen
  int64_t shadows;         // their keys lie in slots [keys, keys + shadows), which only they see
  int64_t query_begin;     // of its queries, among the rows that have one
  int64_t queries;         // shadows' included
  int64_t shadow_queries;  // the last of them
  KeyStore store;
  HalfStore half;          // where the keys are kept, when `store` is a widened copy of them; else null

  int64_t stored() const { return keys + shadows; }
};

struct AttentionShape {
  int64_t heads;
  int64_t kv_heads;  // query head h reads keys and values of head h / (heads / kv_heads)
  int64_t head_dim;
  int64_t block = 0;  // ModelConfig::attention_block
};

// Floats of K and of V for one key of all heads.
int64_t k_width(const AttentionShape& shape);
int64_t v_width(const AttentionShape& shape, int64_t panel);

// Stores new rows k, v [rows, kv_heads * head_dim] in their slots [rows], which ascend within a request. A row's own keys go through
// float16 too where others do: what it sees does not depend on when they were computed.
void store_keys(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans, const int32_t* slots,
                Rows k, Rows v);

// q [queries, heads * head_dim] becomes softmax(q . k^T / sqrt(head_dim)) . v, in place. slots [queries] tell blocks apart. twins [queries]
// are the slots that shadows do not see; of other queries nothing is read.
void attention(Team& team, const KernelTable& kernels, const AttentionShape& shape, const std::vector<Span>& spans, const int32_t* slots,
               const int32_t* twins, Rows q);

}  // namespace llada
