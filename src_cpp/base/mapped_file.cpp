#include "base/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace llada {

#ifdef _WIN32

MappedFile::MappedFile(const std::string& path) {
  std::ifstream file(std::filesystem::u8path(path), std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(path + ": cannot be opened");
  size_ = static_cast<int64_t>(file.tellg());
  copy_ = AlignedArray<char>(size_);
  file.seekg(0);
  if (!file.read(copy_.data(), size_)) throw std::runtime_error(path + ": cannot be read");
  data_ = copy_.data();
}

MappedFile::~MappedFile() = default;

#else

MappedFile::MappedFile(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
  struct stat status;
  void* memory = MAP_FAILED;
  if (fstat(file, &status) == 0 && status.st_size > 0) {
    size_ = static_cast<int64_t>(status.st_size);
    memory = mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file, 0);
  }
  close(file);  // the mapping stays
  if (memory == MAP_FAILED) throw std::runtime_error(path + ": cannot be mapped");
  data_ = static_cast<const char*>(memory);
}

MappedFile::~MappedFile() { munmap(const_cast<char*>(data_), static_cast<size_t>(size_)); }

#endif

}  // namespace llada
