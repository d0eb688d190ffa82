#include "checkpoint/file.h"

#include <algorithm>
#include <cctype>
#include <system_error>

#include "checkpoint/errors.h"

namespace llada {

namespace {

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

}  // namespace

File::File(const std::filesystem::path& path) : name_(path.u8string()) {
  std::error_code failure;
  if (!std::filesystem::is_regular_file(path, failure)) throw FormatError(name_ + ": no such file");
  size_ = std::filesystem::file_size(path, failure);
  if (failure) throw FormatError(name_ + ": cannot be read: " + failure.message());
  stream_.open(path, std::ios::binary);
  if (!stream_) throw FormatError(name_ + ": cannot be read");
  refuse_stand_in();
}

void File::read(uint64_t offset, void* data, uint64_t bytes) {
  stream_.seekg(static_cast<std::streamoff>(offset));
  if (bytes > 0) stream_.read(static_cast<char*>(data), static_cast<std::streamsize>(bytes));
  if (!stream_)
    throw FormatError(name_ + ": expected " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + ", found fewer");
}

void File::refuse_stand_in() {
  std::string head(std::min<uint64_t>(size_, 256), '\0');
  read(0, &head[0], head.size());
  if (starts_with(head, "version https://git-lfs"))
    throw FormatError(name_ + ": this is a Git LFS pointer, not the file: run 'git lfs pull' or download it again");
  head.erase(0, head.find_first_not_of(" \t\r\n\v\f"));
  std::transform(head.begin(), head.end(), head.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (starts_with(head, "<!doctype html") || starts_with(head, "<html"))
    throw FormatError(name_ + ": this is a web page, not the file: the download went wrong");
}

}  // namespace llada
