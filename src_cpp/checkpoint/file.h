// One file of a checkpoint, opened for reading.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace llada {

class File {
 public:
  // Throws FormatError unless it is a regular file that can be read, and is not what a failed download leaves behind.
  explicit File(const std::filesystem::path& path);

  const std::string& name() const { return name_; }
  uint64_t size() const { return size_; }
  void read(uint64_t offset, void* data, uint64_t bytes);

 private:
  void refuse_stand_in();

  std::string name_;
  uint64_t size_ = 0;
  std::ifstream stream_;
};

}  // namespace llada
