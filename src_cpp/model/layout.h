// Where every row of a batch stands.
#pragma once

#include <cstdint>
#include <vector>

#include "llada/model.h"
#include "ops/attention.h"

namespace llada {

// Of a batch, or of some of its requests: rows and selected rows are counted from the first of them.
struct Layout {
  std::vector<Span> spans;        // [requests]
  std::vector<int64_t> loose;     // [requests] room in the workspace for keys that no float32 cache holds, whole panels
  std::vector<int32_t> tokens;    // [rows]
  std::vector<int32_t> slots;     // [rows] in the request's key store; shadows lie behind what its cache will hold
  std::vector<int32_t> places;    // [rows] for RoPE
  std::vector<int32_t> twins;     // [rows] slot that a shadow does not see; empty without shadows
  std::vector<int32_t> selected;  // rows whose hidden state is wanted, ascending
  size_t request_begin = 0;       // of the batch
  int64_t selected_begin = 0;     // of the batch's selected rows

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t loose_keys() const;
  int64_t farthest() const;  // place

  // Leaves only the selected rows with queries; slots, places and twins become theirs.
  void select_queries();

  // The layout of requests [first, last) alone.
  Layout part(size_t first, size_t last) const;
};

// Checks the batch, before anything is written. Caches go by their name in the C interface, which leaves these checks to it.
Layout lay_out(const RaggedBatch& batch, const ModelConfig& config, int64_t panel, uint64_t model);

// Parts of consecutive requests, the largest first, that `threads` threads can take one at a time and end at about the same moment. Empty
// where they would not.
std::vector<Layout> share_out(const Layout& whole, int threads);

}  // namespace llada
