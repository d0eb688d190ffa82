#include "checkpoint/folder.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>

#include "checkpoint/errors.h"
#include "checkpoint/file.h"

namespace llada {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kSliceBytes = 64 << 20;  // what a load holds beside the packed weights
constexpr size_t kNamesListed = 4, kTensorsListed = 8;

// Published names; the leaf `ff_out` is the down projection inside a block and the head outside.
std::map<std::string, TensorSpec> tensor_specs(const ModelConfig& c) {
  const int64_t d = c.d_model, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim, mlp = c.mlp_hidden;
  const std::string prefix = "model.transformer.";
  std::map<std::string, TensorSpec> specs = {{prefix + "wte.weight", {Tensor::embedding, -1, {c.vocabulary, d}}},
                                             {prefix + "ln_f.weight", {Tensor::final_norm, -1, {d}}}};
  if (!c.tied_head) specs[prefix + "ff_out.weight"] = {Tensor::head, -1, {c.vocabulary, d}};
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string block = prefix + "blocks." + std::to_string(i) + ".";
    specs[block + "attn_norm.weight"] = {Tensor::attn_norm, i, {d}};
    specs[block + "q_proj.weight"] = {Tensor::q_proj, i, {q, d}};
    specs[block + "k_proj.weight"] = {Tensor::k_proj, i, {kv, d}};
    specs[block + "v_proj.weight"] = {Tensor::v_proj, i, {kv, d}};
    specs[block + "attn_out.weight"] = {Tensor::o_proj, i, {d, q}};
    specs[block + "ff_norm.weight"] = {Tensor::mlp_norm, i, {d}};
    specs[block + "ff_proj.weight"] = {Tensor::gate_proj, i, {mlp, d}};
    specs[block + "up_proj.weight"] = {Tensor::up_proj, i, {mlp, d}};
    specs[block + "ff_out.weight"] = {Tensor::down_proj, i, {d, mlp}};
  }
  return specs;
}

template <class Map>
std::vector<std::string> names_of(const Map& map) {
  std::vector<std::string> names;
  for (const auto& entry : map) names.push_back(entry.first);
  return names;
}

// Both ascend.
std::vector<std::string> without(const std::vector<std::string>& names, const std::vector<std::string>& others) {
  std::vector<std::string> left;
  std::set_difference(names.begin(), names.end(), others.begin(), others.end(), std::back_inserter(left));
  return left;
}

std::string listed(const char* label, const std::vector<std::string>& names) {
  if (names.empty()) return "";
  std::string text = std::to_string(names.size()) + " " + label + " (";
  for (size_t i = 0; i < std::min(names.size(), kNamesListed); ++i) text += (i ? ", " : "") + names[i];
  return text + (names.size() > kNamesListed ? ", ...); " : "); ");
}

std::string shown(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

DType dtype_of(const std::string& name) {
  return name == "F32" ? DType::float32 : name == "BF16" ? DType::bfloat16 : DType::float16;
}

// A plain name on every system: no separator, no drive, no control character.
bool plain_name(const std::string& name) {
  const std::string ending = ".safetensors";
  const auto barred = [](char c) { return c == '/' || c == '\\' || c == ':' || static_cast<unsigned char>(c) < 0x20; };
  return name.size() > ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0 &&
         std::none_of(name.begin(), name.end(), barred);
}

}  // namespace

Folder::Folder(const fs::path& path) : path_(path) {
  std::error_code failure;
  if (!fs::is_directory(path, failure))
    throw FormatError(path.u8string() + ": expected a checkpoint folder, found " + (fs::exists(path, failure) ? "a file" : "nothing"));
  const fs::path config = path / "config.json";
  config_ = read_config(read_json_object(config), config.u8string());
  specs_ = tensor_specs(config_.model);
  find_shards();
  check_tensors();
}

void Folder::find_shards() {
  std::error_code failure;
  const fs::path index = path_ / "model.safetensors.index.json", single = path_ / "model.safetensors";
  if (fs::is_regular_file(index, failure)) return read_index(index);
  if (!fs::is_regular_file(single, failure))
    throw FormatError(path_.u8string() + ": expected model.safetensors or model.safetensors.index.json, found neither");
  const Safetensors file(single);
  check_names(names_of(file.tensors), single.u8string());
  for (const auto& [name, stored] : file.tensors) sources_[name] = {single, stored};
}

void Folder::read_index(const fs::path& index) {
  const Json json = read_json_object(index);
  const Json* weight_map = json.find("weight_map");
  if (!weight_map || !weight_map->is(Json::Kind::object))
    throw FormatError(index.u8string() + ": weight_map: expected an object, found " + (weight_map ? weight_map->shown() : "none"));
  std::map<std::string, std::set<std::string>> shards;  // file -> its tensors
  std::set<std::string> all;
  for (size_t i = 0; i < weight_map->keys.size(); ++i) {
    const Json& shard = weight_map->items[i];
    if (!shard.is(Json::Kind::string) || !plain_name(shard.text))
      throw FormatError(index.u8string() + ": tensor " + weight_map->keys[i] +
                        ": expected the name of a .safetensors file in this folder, found " + shard.shown());
    shards[shard.text].insert(weight_map->keys[i]);
    all.insert(weight_map->keys[i]);
  }
  check_names({all.begin(), all.end()}, index.u8string());
  for (const auto& [shard, mapped] : shards) {
    const Safetensors file(path_ / fs::u8path(shard));
    const std::vector<std::string> stored = names_of(file.tensors), wanted(mapped.begin(), mapped.end());
    if (stored != wanted)
      throw FormatError(file.path.u8string() + ": does not hold the tensors that the index says: " +
                        listed("missing", without(wanted, stored)) + listed("not in the index", without(stored, wanted)));
    for (const auto& [name, tensor] : file.tensors) sources_[name] = {file.path, tensor};
  }
}

void Folder::check_names(const std::vector<std::string>& names, const std::string& source) const {
  const std::vector<std::string> wanted = names_of(specs_);
  if (names != wanted)
    throw FormatError(source + ": tensors do not match config.json: " + listed("missing", without(wanted, names)) +
                      listed("unexpected", without(names, wanted)));
}

void Folder::check_tensors() const {
  std::vector<std::string> wrong;
  for (const auto& [name, source] : sources_) {
    const std::string& dtype = source.stored.dtype;
    if (dtype != "F32" && dtype != "F16" && dtype != "BF16")
      throw UnsupportedError(source.file.u8string() + ": tensor " + name + ": expected dtype F32, F16 or BF16, found " + dtype);
    const std::vector<int64_t>& expected = specs_.at(name).shape;
    if (source.stored.shape != expected)
      wrong.push_back(name + ": expected shape " + shown(expected) + ", found " + shown(source.stored.shape));
  }
  if (wrong.empty()) return;
  std::string message = path_.u8string() + ": " + std::to_string(wrong.size()) + " tensor(s) do not fit config.json: ";
  for (size_t i = 0; i < std::min(wrong.size(), kTensorsListed); ++i) message += (i ? "; " : "") + wrong[i];
  throw FormatError(message + (wrong.size() > kTensorsListed ? "; ..." : ""));
}

DType Folder::dtype() const {
  const bool halves = std::all_of(sources_.begin(), sources_.end(), [](const auto& s) { return s.second.stored.dtype == "BF16"; });
  return halves ? DType::bfloat16 : DType::float32;
}

void Folder::load(Model& model) const {
  std::vector<char> slice;
  for (const auto& [name, source] : sources_) {
    const TensorSpec& spec = specs_.at(name);
    const DType dtype = dtype_of(source.stored.dtype);
    const int64_t rows = spec.shape[0], row_bytes = (spec.shape.size() > 1 ? spec.shape[1] : 1) * size_of(dtype);
    const int64_t step = std::max<int64_t>(1, kSliceBytes / row_bytes);
    File file(source.file);
    for (int64_t begin = 0; begin < rows; begin += step) {
      const int64_t n = std::min(step, rows - begin);
      slice.resize(static_cast<size_t>(n * row_bytes));
      file.read(source.stored.offset + static_cast<uint64_t>(begin * row_bytes), slice.data(), slice.size());
      try {
        model.load(spec.role, spec.layer, begin, n, slice.data(), dtype);
      } catch (const std::out_of_range& e) {
        throw std::invalid_argument(source.file.u8string() + ": tensor " + name + ": " + e.what());
      }
    }
  }
}

}  // namespace llada
