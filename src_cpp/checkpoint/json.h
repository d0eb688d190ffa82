// A strict reader of JSON (RFC 8259): UTF-8, no duplicate keys, no NaN or Infinity, bounded depth and size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace llada {

struct Json {
  enum class Kind { null, boolean, integer, real, string, list, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::string text;               // a string, or a number as it is written
  std::vector<Json> items;        // of a list, or the values of an object
  std::vector<std::string> keys;  // [items] of an object

  bool is(Kind k) const { return kind == k; }
  const Json* find(const std::string& key) const;  // nullptr when absent
  std::optional<int64_t> integer() const;          // of an integer of 64 bits
  std::optional<double> number() const;            // of an integer or a real within float64
  std::string shown() const;                       // for messages
};

// Throws FormatError; `source` begins its message.
Json parse_json(const std::string& text, const std::string& source);

// A file that holds an object.
Json read_json_object(const std::filesystem::path& path);

}  // namespace llada
