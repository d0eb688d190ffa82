#include "model/layout.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "model/kv_cache.h"

namespace llada {

namespace {

constexpr int64_t kMaxPositions = int64_t{1} << 24;

// Rows from which a matrix product hides the reading of its weights from the shared cache.
constexpr int64_t kPartRows = 64;
// How much longer than their mean the busiest thread may take: about what waiting for one another after every product costs them all.
constexpr double kUneven = 1.2;

std::string range(int64_t least, int64_t most) { return std::to_string(least) + " to " + std::to_string(most); }

std::string entry(const char* name, int64_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void check_place(int64_t i, int64_t place) {
  if (place < 0 || place >= kMaxPositions)
    throw std::invalid_argument(entry("places", i) + ": expected " + range(0, kMaxPositions - 1) + ", found " + std::to_string(place));
}

}  // namespace

int64_t Layout::loose_keys() const { return std::accumulate(loose.begin(), loose.end(), int64_t{0}); }

int64_t Layout::farthest() const { return *std::max_element(places.begin(), places.end()); }

void Layout::select_queries() {
  int64_t taken = 0;
  const int64_t count = static_cast<int64_t>(selected.size());
  for (Span& s : spans) {
    s.query_begin = taken;
    while (taken < count && selected[static_cast<size_t>(taken)] < s.row_begin + s.rows) ++taken;
    s.queries = taken - s.query_begin;
    const auto first = selected.begin() + s.query_begin, last = selected.begin() + taken;
    s.shadow_queries = last - std::lower_bound(first, last, s.row_begin + s.rows - s.shadows);
  }
  for (std::vector<int32_t>* each : {&slots, &places, &twins})
    for (size_t i = 0; !each->empty() && i < selected.size(); ++i) (*each)[i] = (*each)[static_cast<size_t>(selected[i])];
}

Layout Layout::part(size_t first, size_t last) const {
  const int64_t begin = spans[first].row_begin, end = spans[last - 1].row_begin + spans[last - 1].rows;
  const auto rows_of = [&](const std::vector<int32_t>& each) {
    return each.empty() ? each : std::vector<int32_t>(each.begin() + begin, each.begin() + end);
  };
  const auto from = std::lower_bound(selected.begin(), selected.end(), begin), to = std::lower_bound(from, selected.end(), end);
  Layout found;
  found.spans.assign(spans.begin() + static_cast<ptrdiff_t>(first), spans.begin() + static_cast<ptrdiff_t>(last));
  for (Span& s : found.spans) s.row_begin -= begin, s.query_begin -= begin;
  found.loose.assign(loose.begin() + static_cast<ptrdiff_t>(first), loose.begin() + static_cast<ptrdiff_t>(last));
  found.tokens = rows_of(tokens);
  found.slots = rows_of(slots);
  found.places = rows_of(places);
  found.twins = rows_of(twins);
  found.selected.assign(from, to);
  for (int32_t& row : found.selected) row -= static_cast<int32_t>(begin);
  found.request_begin = request_begin + first;
  found.selected_begin = selected_begin + (from - selected.begin());
  return found;
}

Layout lay_out(const RaggedBatch& batch, const ModelConfig& c, int64_t panel, uint64_t model) {
  const int64_t vocabulary = c.vocabulary;
  Layout layout;
  const auto add = [&](int64_t slot, int64_t place) {
    layout.slots.push_back(static_cast<int32_t>(slot));
    layout.places.push_back(static_cast<int32_t>(place));
  };
  std::unordered_map<const KVCache*, int64_t> users;  // request of each cache
  if (batch.requests < 1) throw std::invalid_argument("requests: expected at least 1, found " + std::to_string(batch.requests));
  if (batch.slots && batch.positions) throw std::invalid_argument("positions: expected none beside slots, found some");
  for (int64_t r = 0; r < batch.requests; ++r) {
    const int64_t length = batch.lengths[r], position = batch.positions ? batch.positions[r] : 0;
    const KVCache* cache = batch.caches ? batch.caches[r] : nullptr;
    if (length < 1) throw std::invalid_argument(entry("lengths", r) + ": expected at least 1, found " + std::to_string(length));
    const int64_t cached = cache ? cache->length() : 0;
    if (position < 0 || position > cached)
      throw std::invalid_argument(entry("positions", r) + ": expected 0 to " + std::to_string(cached) + " (what its cache holds), found " +
                                  std::to_string(position));
    if (position + length > kMaxPositions)
      throw std::invalid_argument(entry("lengths", r) + ": expected an end within " + std::to_string(kMaxPositions) + " positions, found " +
                                  std::to_string(position + length));
    if (cache && cache->impl().model != model) throw std::invalid_argument(entry("kv_caches", r) + ": belongs to another model");
    if (cache) {
      const auto [user, first] = users.emplace(cache, r);
      if (!first) throw std::invalid_argument(entry("kv_caches", r) + ": is also that of request " + std::to_string(user->second));
    }
    const int64_t begin = layout.rows(), end = begin + length;
    int64_t shadow_begin = end;
    if (batch.twins) shadow_begin = std::find_if(batch.twins + begin, batch.twins + end, [](int32_t t) { return t != -1; }) - batch.twins;
    if (shadow_begin == begin)
      throw std::invalid_argument(entry("twins", begin) + ": expected -1 (a request does not begin with a shadow), found " +
                                  std::to_string(batch.twins[begin]));
    int64_t next = position;  // behind the last slot
    for (int64_t i = begin; i < shadow_begin; ++i) {
      const int64_t slot = batch.slots ? batch.slots[i] : next, place = batch.places ? batch.places[i] : slot;
      const int64_t most = std::min(std::max(cached, next), kMaxPositions - 1);
      if (slot < next || slot > most)
        throw std::invalid_argument(entry("slots", i) + ": expected " + range(next, most) +
                                    " (ascending, and without a gap behind what its cache holds), found " + std::to_string(slot));
      check_place(i, place);
      if (c.attention_block > 0 && place != slot)
        throw std::invalid_argument(entry("places", i) + ": expected " + std::to_string(slot) +
                                    " (its slot, by which this model tells blocks apart), found " + std::to_string(place));
      add(slot, place);
      next = slot + 1;
    }
    const int64_t keys = std::max(cached, next), shadows = end - shadow_begin;
    if (c.attention_block > 0 && shadows > 0)
      throw std::invalid_argument(entry("twins", shadow_begin) + ": expected -1 (rows of this model see blocks, and a shadow has none), " +
                                  "found " + std::to_string(batch.twins[shadow_begin]));
    for (int64_t i = shadow_begin; i < end; ++i) {
      const int64_t twin = batch.twins[i], place = batch.places ? batch.places[i] : twin;
      if (twin < 0 || twin >= keys)
        throw std::invalid_argument(entry("twins", i) + ": expected " + range(0, keys - 1) +
                                    (twin == -1 ? " (shadows are the last rows of a request), found "
                                                : " (a slot that its request sees), found ") +
                                    std::to_string(twin));
      if (batch.slots && batch.slots[i] != -1)
        throw std::invalid_argument(entry("slots", i) + ": expected -1 (of a shadow), found " + std::to_string(batch.slots[i]));
      check_place(i, place);
      add(keys + i - shadow_begin, place);
    }
    if (batch.twins) layout.twins.insert(layout.twins.end(), batch.twins + begin, batch.twins + end);
    layout.spans.push_back({begin, length, keys, shadows, begin, length, shadows, {}, {}});
    layout.tokens.insert(layout.tokens.end(), batch.tokens + begin, batch.tokens + end);
    layout.loose.push_back(!cache || cache->dtype() == DType::float16 ? round_up(keys + shadows, panel) : 0);
  }
  for (int64_t i = 0; i < layout.rows(); ++i)
    if (batch.tokens[i] < 0 || batch.tokens[i] >= vocabulary)
      throw std::invalid_argument(entry("tokens", i) + ": expected 0 to " + std::to_string(vocabulary - 1) + ", found " +
                                  std::to_string(batch.tokens[i]));
  for (int64_t i = 0; i < batch.selected; ++i)
    if (batch.rows[i] < 0 || batch.rows[i] >= layout.rows() || (i > 0 && batch.rows[i] <= batch.rows[i - 1]))
      throw std::invalid_argument(entry("rows", i) + ": expected ascending rows below " + std::to_string(layout.rows()) + ", found " +
                                  std::to_string(batch.rows[i]));
  layout.selected.assign(batch.rows, batch.rows + batch.selected);
  return layout;
}

std::vector<Layout> share_out(const Layout& whole, int threads) {
  std::vector<Layout> parts;
  const size_t requests = whole.spans.size();
  int64_t left = whole.rows();
  for (size_t first = 0, last = 0; first < requests; first = last) {
    int64_t rows = 0;
    while (last < requests && (rows < kPartRows || left < kPartRows)) {
      rows += whole.spans[last].rows;
      left -= whole.spans[last++].rows;
    }
    if (first == 0 && last == requests) return {};
    parts.push_back(whole.part(first, last));
  }
  std::stable_sort(parts.begin(), parts.end(), [](const Layout& a, const Layout& b) { return a.rows() > b.rows(); });
  std::vector<int64_t> loads(static_cast<size_t>(threads));
  for (const Layout& part : parts) *std::min_element(loads.begin(), loads.end()) += part.rows();
  const double mean = static_cast<double>(whole.rows()) / threads;
  if (static_cast<double>(*std::max_element(loads.begin(), loads.end())) > kUneven * mean) return {};
  return parts;
}

}  // namespace llada
