#include "checkpoint/json.h"

#include <algorithm>
#include <charconv>
#include <locale>
#include <sstream>

#include "checkpoint/errors.h"
#include "checkpoint/file.h"

namespace llada {

namespace {

constexpr uint64_t kLargestFile = 64 << 20;
constexpr int kDeepest = 100;
// The largest published index has a few thousand values; a value costs some hundred bytes of memory.
constexpr int64_t kMostValues = 1 << 20;
constexpr size_t kLongestNumber = 4300;  // the limit of Python's reader
constexpr size_t kShown = 80;

bool digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  Parser(const std::string& text, const std::string& source) : text_(text), source_(source) {}

  Json document() {
    check_utf8();
    Json value = this->value(0);
    space();
    if (at_ < text_.size()) fail("expected the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError(source_ + ": not valid JSON: " + what + " at offset " + std::to_string(at_));
  }

  // RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
  void check_utf8() const {
    const auto byte = [&](size_t i) { return i < text_.size() ? static_cast<unsigned char>(text_[i]) : 0; };
    const auto within = [&](size_t i, int low, int high) { return byte(i) >= low && byte(i) <= high; };
    for (size_t i = 0; i < text_.size();) {
      const int lead = byte(i);
      size_t length = 0;
      if (lead < 0x80) length = 1;
      else if (lead >= 0xc2 && lead <= 0xdf) length = 2;
      else if (lead >= 0xe0 && lead <= 0xef && within(i + 1, lead == 0xe0 ? 0xa0 : 0x80, lead == 0xed ? 0x9f : 0xbf)) length = 3;
      else if (lead >= 0xf0 && lead <= 0xf4 && within(i + 1, lead == 0xf0 ? 0x90 : 0x80, lead == 0xf4 ? 0x8f : 0xbf)) length = 4;
      for (size_t j = 1; j < length; ++j)
        if (!within(i + j, 0x80, 0xbf)) length = 0;
      if (length == 0)
        throw FormatError(source_ + ": expected UTF-8 text, found byte " + std::to_string(lead) + " at offset " + std::to_string(i));
      i += length;
    }
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
  }

  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool take_word(const char* word) {
    const std::string w(word);
    if (text_.compare(at_, w.size(), w) != 0) return false;
    at_ += w.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) throw FormatError(source_ + ": nested too deeply");
    if (++values_ > kMostValues) throw FormatError(source_ + ": expected at most " + std::to_string(kMostValues) + " values");
    space();
    Json v;
    if (take('{')) {
      object(v, depth);
    } else if (take('[')) {
      list(v, depth);
    } else if (take('"')) {
      v.kind = Json::Kind::string;
      v.text = string();
    } else if (take_word("null")) {
      v.kind = Json::Kind::null;
    } else if (take_word("true")) {
      v.kind = Json::Kind::boolean;
      v.boolean = true;
    } else if (take_word("false")) {
      v.kind = Json::Kind::boolean;
    } else {
      number(v);
    }
    return v;
  }

  void object(Json& v, int depth) {
    v.kind = Json::Kind::object;
    space();
    if (!take('}')) {
      do {
        space();
        if (!take('"')) fail("expected a key in quotes");
        v.keys.push_back(string());
        space();
        if (!take(':')) fail("expected ':'");
        v.items.push_back(value(depth + 1));
        space();
      } while (take(','));
      if (!take('}')) fail("expected ',' or '}'");
    }
    std::vector<std::string> sorted = v.keys;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) throw FormatError(source_ + ": duplicate key '" + *twice + "'");
  }

  void list(Json& v, int depth) {
    v.kind = Json::Kind::list;
    space();
    if (take(']')) return;
    do {
      v.items.push_back(value(depth + 1));
      space();
    } while (take(','));
    if (!take(']')) fail("expected ',' or ']'");
  }

  void digits() {
    if (!digit(peek())) fail("expected a digit");
    while (digit(peek())) ++at_;
  }

  void number(Json& v) {
    const size_t begin = at_;
    take('-');
    for (const char* word : {"NaN", "Infinity"})
      if (take_word(word)) throw FormatError(source_ + ": " + word + " is not JSON: expected a finite number");
    if (!digit(peek())) fail("expected a value");
    if (!take('0')) digits();
    v.kind = Json::Kind::integer;
    if (take('.')) {
      v.kind = Json::Kind::real;
      digits();
    }
    if (take('e') || take('E')) {
      v.kind = Json::Kind::real;
      if (!take('+')) take('-');
      digits();
    }
    if (at_ - begin > kLongestNumber) fail("expected a number of at most " + std::to_string(kLongestNumber) + " digits");
    v.text = text_.substr(begin, at_ - begin);
  }

  std::string string() {
    std::string out;
    for (;;) {
      if (at_ >= text_.size()) fail("expected the end of a string");
      const char c = text_[at_];
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      ++at_;
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      const std::string escapes = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
      const size_t i = escapes.find(peek());
      if (at_ < text_.size() && i != std::string::npos) {
        ++at_;
        out += meanings[i];
      } else if (take('u')) {
        append_utf8(out, code_point());
      } else {
        fail("an unknown escape");
      }
    }
  }

  uint32_t hex4() {
    uint32_t unit = 0;
    if (at_ + 4 > text_.size()) fail("expected four hexadecimal digits");
    const char* first = text_.data() + at_;
    const auto end = std::from_chars(first, first + 4, unit, 16);
    if (end.ptr != first + 4) fail("expected four hexadecimal digits");
    at_ += 4;
    return unit;
  }

  uint32_t code_point() {
    const uint32_t unit = hex4();
    if (unit < 0xd800 || unit > 0xdfff) return unit;
    if (unit > 0xdbff || !take_word("\\u")) fail("an unpaired surrogate");
    const uint32_t low = hex4();
    if (low < 0xdc00 || low > 0xdfff) fail("an unpaired surrogate");
    return 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
  }

  static void append_utf8(std::string& out, uint32_t c) {
    const auto tail = [&](int shift) { out += static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
    if (c < 0x80) {
      out += static_cast<char>(c);
    } else if (c < 0x800) {
      out += static_cast<char>(0xc0 | (c >> 6));
      tail(0);
    } else if (c < 0x10000) {
      out += static_cast<char>(0xe0 | (c >> 12));
      tail(6);
      tail(0);
    } else {
      out += static_cast<char>(0xf0 | (c >> 18));
      tail(12);
      tail(6);
      tail(0);
    }
  }

  const std::string& text_;
  const std::string& source_;
  size_t at_ = 0;
  int64_t values_ = 0;
};

}  // namespace

const Json* Json::find(const std::string& key) const {
  const auto at = std::find(keys.begin(), keys.end(), key);
  return at == keys.end() ? nullptr : &items[static_cast<size_t>(at - keys.begin())];
}

std::optional<int64_t> Json::integer() const {
  int64_t value = 0;
  if (kind != Kind::integer) return std::nullopt;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  return end.ec == std::errc() ? std::optional<int64_t>(value) : std::nullopt;
}

std::optional<double> Json::number() const {
  if (kind != Kind::integer && kind != Kind::real) return std::nullopt;
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> value;
  return stream.fail() ? std::nullopt : std::optional<double>(value);
}

std::string Json::shown() const {
  switch (kind) {
    case Kind::null: return "null";
    case Kind::boolean: return boolean ? "true" : "false";
    case Kind::list: return "a list of " + std::to_string(items.size());
    case Kind::object: return "an object";
    default: break;
  }
  const std::string start = text.size() > kShown ? text.substr(0, kShown) + "..." : text;
  return kind == Kind::string ? "'" + start + "'" : start;
}

Json parse_json(const std::string& text, const std::string& source) { return Parser(text, source).document(); }

Json read_json_object(const std::filesystem::path& path) {
  File file(path);
  if (file.size() > kLargestFile)
    throw FormatError(file.name() + ": expected at most " + std::to_string(kLargestFile) + " bytes, found " + std::to_string(file.size()));
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, &text[0], text.size());
  Json value = parse_json(text, file.name());
  if (!value.is(Json::Kind::object)) throw FormatError(file.name() + ": expected a JSON object, found " + value.shown());
  return value;
}

}  // namespace llada
