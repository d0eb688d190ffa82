// A Hugging Face folder -> configuration and checked tensors. Nothing in a folder is trusted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"
#include "llada/model.h"

namespace llada {

// A tensor that the configuration asks for.
struct TensorSpec {
  Tensor role;
  int64_t layer;
  std::vector<int64_t> shape;
};

class Folder {
 public:
  // Throws FormatError and UnsupportedError.
  explicit Folder(const std::filesystem::path& path);

  const FolderConfig& config() const { return config_; }
  DType dtype() const;  // bfloat16 when every tensor is, else float32
  // Throws std::invalid_argument when the model's format cannot hold a value of the folder.
  void load(Model& model) const;

 private:
  struct Source {
    std::filesystem::path file;
    StoredTensor stored;
  };

  void find_shards();
  void read_index(const std::filesystem::path& index);
  void check_names(const std::vector<std::string>& names, const std::string& source) const;
  void check_tensors() const;

  const std::filesystem::path path_;
  FolderConfig config_;
  std::map<std::string, TensorSpec> specs_;
  std::map<std::string, Source> sources_;
};

}  // namespace llada
