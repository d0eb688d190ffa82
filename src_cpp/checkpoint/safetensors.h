// One file of tensors: 8 bytes of header length, a JSON header, the data. Every claim of the header is checked against the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace llada {

struct StoredTensor {
  std::string dtype;           // as the format names it
  std::vector<int64_t> shape;
  uint64_t offset;             // of its first byte in the file
  uint64_t bytes;
};

struct Safetensors {
  // Throws FormatError.
  explicit Safetensors(const std::filesystem::path& path);

  std::filesystem::path path;
  std::map<std::string, StoredTensor> tensors;
};

}  // namespace llada
