// A file in memory, read-only and shared between the processes that map it.
#pragma once

#include <cstdint>
#include <string>

#include "base/aligned.h"

namespace llada {

class MappedFile {
 public:
  // Throws std::runtime_error when the file cannot be opened or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const char* data_ = nullptr;
  int64_t size_ = 0;
  AlignedArray<char> copy_;  // where files cannot be mapped
};

}  // namespace llada
