#include "checkpoint/safetensors.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "checkpoint/errors.h"
#include "checkpoint/file.h"
#include "checkpoint/json.h"

namespace llada {

namespace {

constexpr uint64_t kLargestHeader = 100'000'000;  // of the format's specification

// Bytes of an element; the checkpoint decides later which of them it reads.
const std::map<std::string, uint64_t> kElementBytes = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
    {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"I64", 8},     {"U64", 8},     {"F64", 8}, {"C64", 8},
};

class Header {
 public:
  explicit Header(File& file) : file_(file) {}

  std::map<std::string, StoredTensor> tensors() {
    const uint64_t begin = 8 + length();
    std::string text(static_cast<size_t>(begin - 8), '\0');
    file_.read(8, &text[0], text.size());
    if (text.empty() || text[0] != '{') fail("expected a header that begins with '{'");
    const Json header = parse(text);
    std::map<std::string, StoredTensor> named;
    for (size_t i = 0; i < header.keys.size(); ++i) {
      if (header.keys[i] == "__metadata__") check_metadata(header.items[i]);
      else named[header.keys[i]] = tensor(header.keys[i], header.items[i]);
    }
    check_offsets(named, file_.size() - begin);
    for (auto& [name, t] : named) t.offset += begin;
    return named;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError(file_.name() + ": not a valid safetensors file (" + std::to_string(file_.size()) + " bytes): " + what);
  }

  Json parse(const std::string& text) const {
    try {
      return parse_json(text, "header");
    } catch (const FormatError& e) {
      fail(e.what());
    }
  }

  uint64_t length() {
    if (file_.size() < 8) fail("expected 8 bytes of header length");
    unsigned char bytes[8];
    file_.read(0, bytes, 8);
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | bytes[i];
    const uint64_t most = std::min(kLargestHeader, file_.size() - 8);
    if (length > most) fail("expected a header of at most " + std::to_string(most) + " bytes, found " + std::to_string(length));
    return length;
  }

  void check_metadata(const Json& metadata) const {
    const auto text = [](const Json& v) { return v.is(Json::Kind::string); };
    if (!metadata.is(Json::Kind::object) || !std::all_of(metadata.items.begin(), metadata.items.end(), text))
      fail("__metadata__: expected an object of strings");
  }

  const Json& field(const std::string& name, const Json& entry, const char* key, Json::Kind kind) const {
    const Json* found = entry.find(key);
    if (!found || !found->is(kind)) fail("tensor " + name + ": " + key + " is missing or of the wrong type");
    return *found;
  }

  uint64_t count(const std::string& name, const char* key, const Json& value) const {
    const auto n = value.integer();
    if (!n || *n < 0) fail("tensor " + name + ": " + key + ": expected whole numbers, found " + value.shown());
    return static_cast<uint64_t>(*n);
  }

  StoredTensor tensor(const std::string& name, const Json& entry) const {
    const Json& offsets = field(name, entry, "data_offsets", Json::Kind::list);
    if (offsets.items.size() != 2) fail("tensor " + name + ": data_offsets: expected two, found " + offsets.shown());
    const uint64_t begin = count(name, "data_offsets", offsets.items[0]), end = count(name, "data_offsets", offsets.items[1]);
    if (end < begin) fail("tensor " + name + ": data_offsets: expected a begin and an end, found the end first");

    StoredTensor t{field(name, entry, "dtype", Json::Kind::string).text, {}, begin, end - begin};
    const auto element = kElementBytes.find(t.dtype);
    if (element == kElementBytes.end()) fail("tensor " + name + ": unknown dtype '" + t.dtype + "'");
    uint64_t bytes = element->second;
    for (const Json& extent : field(name, entry, "shape", Json::Kind::list).items) {
      const uint64_t n = count(name, "shape", extent);
      if (n != 0 && bytes > std::numeric_limits<uint64_t>::max() / n) fail("tensor " + name + ": shape: more elements than 64 bits count");
      bytes *= n;
      t.shape.push_back(static_cast<int64_t>(n));
    }
    if (bytes != t.bytes)
      fail("tensor " + name + ": expected " + std::to_string(bytes) + " bytes for its shape, found " + std::to_string(t.bytes));
    return t;
  }

  // Every byte of the data belongs to one tensor.
  void check_offsets(const std::map<std::string, StoredTensor>& named, uint64_t data) const {
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    for (const auto& [name, t] : named) ranges.emplace_back(t.offset, t.offset + t.bytes);
    std::sort(ranges.begin(), ranges.end());
    uint64_t at = 0;
    for (const auto& [begin, end] : ranges) {
      if (begin != at) fail("expected a tensor at offset " + std::to_string(at) + ", found one at " + std::to_string(begin));
      at = end;
    }
    if (at != data) fail("expected " + std::to_string(at) + " bytes of data, found " + std::to_string(data));
  }

  File& file_;
};

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& path) : path(path) {
  File file(path);
  tensors = Header(file).tensors();
}

}  // namespace llada
