#include "checkpoint/config.h"

#include <algorithm>
#include <utility>

#include "checkpoint/errors.h"

namespace llada {

namespace {

constexpr int64_t kLargestDimension = 1 << 24;
constexpr int64_t kLargestLayers = 1 << 12;
constexpr double kLargestNumber = 1e30;

// Architectures of the family that this version knows of but does not run.
const char* const kKnownButAbsent[] = {"ILLaDAForCausalLM", "LLaDAMoEModelLM", "LLaDAMoEModel", "LLaDA2MoeModelLM", "DreamModel"};

// Options that no released checkpoint uses otherwise, and the values they may have; any other changes the architecture.
const std::pair<const char*, const char*> kFixedOptions[] = {
    {"block_type", R"(["llama"])"},
    {"block_group_size", "[1]"},
    {"activation_type", R"(["silu"])"},
    {"layer_norm_type", R"(["rms"])"},
    {"layer_norm_with_affine", "[true]"},
    {"attention_layer_norm", "[false]"},
    {"include_bias", "[false]"},
    {"include_qkv_bias", "[false, null]"},
    {"bias_for_layer_norm", "[false, null]"},
    {"input_emb_norm", "[false]"},
    {"scale_logits", "[false]"},
    {"alibi", "[false]"},
    {"rope", "[true]"},
    {"rope_full_precision", "[true]"},
    {"partial_rotary_factor", "[1, null]"},
    {"rope_scaling", "[null]"},
    {"quantization_config", "[null]"},
};
// Of those, the ones whose absence would silently mean another value: the defaults of the class are GPT-2's.
const char* const kRequiredOptions[] = {"block_type", "layer_norm_type", "activation_type", "rope"};

// A number for booleans too, as Python compares them: 1 is true.
std::optional<double> numeric(const Json& v) { return v.is(Json::Kind::boolean) ? std::optional<double>(v.boolean) : v.number(); }

bool equal(const Json& a, const Json& b) {
  if (numeric(a) || numeric(b)) return numeric(a) == numeric(b);
  return a.kind == b.kind && a.text == b.text;
}

bool truthy(const Json& v) {
  if (numeric(v)) return *numeric(v) != 0;
  return !v.text.empty() || !v.items.empty();
}

class Reader {
 public:
  Reader(const Json& json, const std::string& source) : json_(json), source_(source) {}

  FolderConfig config() const {
    check_architecture();
    check_options();
    FolderConfig f;
    ModelConfig& c = f.model;
    c.heads = integer("n_heads");
    c.kv_heads = kv_heads(c.heads);
    c.d_model = integer("d_model");
    const int64_t vocab_size = integer("vocab_size");
    c.vocabulary = given("embedding_size") ? integer("embedding_size") : vocab_size;
    if (c.vocabulary < vocab_size) wrong("embedding_size", "at least vocab_size (" + std::to_string(vocab_size) + ")", c.vocabulary);
    if (c.d_model % c.heads) wrong("d_model", "a multiple of n_heads (" + std::to_string(c.heads) + ")", c.d_model);
    c.head_dim = c.d_model / c.heads;
    if (c.head_dim % 2 || c.head_dim > 256) wrong("d_model / n_heads", "an even number up to 256", c.head_dim);
    if (const Json* stated = json_.find("head_dim"); stated && !stated->is(Json::Kind::null) && numeric(*stated) != c.head_dim)
      wrong("head_dim", "d_model / n_heads (" + std::to_string(c.head_dim) + ")", stated->shown());
    if (c.heads % c.kv_heads) wrong("n_kv_heads", "a divisor of n_heads (" + std::to_string(c.heads) + ")", c.kv_heads);
    c.layers = integer("n_layers", kLargestLayers);
    c.mlp_hidden = integer("mlp_hidden_size");
    f.max_tokens = integer("max_sequence_length");
    c.rope_theta = rope_theta();
    c.norm_eps = positive("rms_norm_eps");
    c.tied_head = boolean("weight_tying");
    f.mask_token = token("mask_token_id", c.vocabulary);
    token("eos_token_id", c.vocabulary);
    token("eot_token_id", c.vocabulary);
    return f;
  }

 private:
  [[noreturn]] void wrong(const std::string& key, const std::string& expected, const std::string& found) const {
    throw FormatError(source_ + ": " + key + ": expected " + expected + ", found " + found);
  }
  [[noreturn]] void wrong(const std::string& key, const std::string& expected, int64_t found) const {
    wrong(key, expected, std::to_string(found));
  }

  const Json& required(const char* key) const {
    const Json* value = json_.find(key);
    if (!value) throw FormatError(source_ + ": required key '" + key + "' is missing");
    return *value;
  }

  bool given(const char* key) const {
    const Json* value = json_.find(key);
    return value && !value->is(Json::Kind::null);
  }

  void check_architecture() const {
    const Json* names = json_.find("architectures");
    if (!names || !names->is(Json::Kind::list) || names->items.empty() || !names->items[0].is(Json::Kind::string))
      wrong("architectures", "a list whose first entry names the model class", names ? names->shown() : "none");
    const std::string& name = names->items[0].text;
    if (name == "LLaDAModelLM") return;
    const bool known = std::find(std::begin(kKnownButAbsent), std::end(kKnownButAbsent), name) != std::end(kKnownButAbsent);
    throw UnsupportedError(source_ + (known ? ": architecture " + name + " is not implemented yet" :
                                              ": unknown architecture " + names->items[0].shown()) +
                           "; this version runs LLaDAModelLM");
  }

  void check_options() const {
    for (const char* key : kRequiredOptions) required(key);
    for (const auto& [key, allowed] : kFixedOptions) {
      const Json* found = json_.find(key);
      const Json values = parse_json(allowed, key);
      if (found && std::none_of(values.items.begin(), values.items.end(), [&](const Json& v) { return equal(*found, v); }))
        throw UnsupportedError(source_ + ": " + key + " = " + found->shown() + " is not supported: expected one of " + allowed);
    }
  }

  int64_t kv_heads(int64_t heads) const {
    if (given("n_kv_heads")) return integer("n_kv_heads");
    const Json* shared = json_.find("multi_query_attention");
    return shared && truthy(*shared) ? 1 : heads;
  }

  int64_t integer(const char* key, int64_t largest = kLargestDimension) const {
    const Json& value = required(key);
    const auto n = value.integer();
    if (!n || *n < 1 || *n > largest) wrong(key, "a whole number from 1 to " + std::to_string(largest), value.shown());
    return *n;
  }

  // Newer versions of transformers write what concerns RoPE into an object of its own.
  double rope_theta() const {
    if (!given("rope_parameters")) return positive("rope_theta", required("rope_theta"));
    const Json& settings = *json_.find("rope_parameters");
    if (!settings.is(Json::Kind::object)) wrong("rope_parameters", "an object", settings.shown());
    const Json* theta = given("rope_theta") ? json_.find("rope_theta") : nullptr;
    for (size_t i = 0; i < settings.keys.size(); ++i) {
      const Json& value = settings.items[i];
      const std::string key = "rope_parameters." + settings.keys[i];
      const auto unsupported = [&](const char* expected) {
        throw UnsupportedError(source_ + ": " + key + " = " + value.shown() + " is not supported: expected " + expected);
      };
      if (settings.keys[i] == "rope_type" || settings.keys[i] == "type") {
        if (!value.is(Json::Kind::string) || value.text != "default") unsupported("'default'");
      } else if (settings.keys[i] == "partial_rotary_factor") {
        if (numeric(value) != 1.0) unsupported("1");
      } else if (settings.keys[i] == "rope_theta") {
        if (theta && !equal(*theta, value)) wrong(key, "rope_theta (" + theta->shown() + ")", value.shown());
        theta = &value;
      } else {
        unsupported("only rope_theta and partial_rotary_factor");
      }
    }
    return positive("rope_theta", theta ? *theta : required("rope_theta"));
  }

  double positive(const char* key) const { return positive(key, required(key)); }

  double positive(const char* key, const Json& value) const {
    const auto x = value.number();
    if (!x || !(*x > 0) || *x > kLargestNumber) wrong(key, "a number above 0 and up to 1e30", value.shown());
    return *x;
  }

  bool boolean(const char* key) const {
    const Json& value = required(key);
    if (!value.is(Json::Kind::boolean)) wrong(key, "true or false", value.shown());
    return value.boolean;
  }

  std::optional<int64_t> token(const char* key, int64_t vocabulary) const {
    if (!given(key)) return std::nullopt;
    const Json& value = required(key);
    const auto id = value.integer();
    if (!id || *id < 0 || *id >= vocabulary) wrong(key, "a token id from 0 to " + std::to_string(vocabulary - 1), value.shown());
    return id;
  }

  const Json& json_;
  const std::string& source_;
};

}  // namespace

FolderConfig read_config(const Json& json, const std::string& source) { return Reader(json, source).config(); }

}  // namespace llada
