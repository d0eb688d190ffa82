// Cache-line aligned memory, owned and uninitialised, or a view of someone else's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace llada {

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// 64-byte aligned bytes; large requests ask the kernel for huge pages. Throws std::bad_alloc.
void* aligned_bytes(size_t bytes);
void free_aligned_bytes(void* bytes) noexcept;

template <class T>
class AlignedArray {
  static_assert(std::is_trivially_copyable<T>::value, "elements are left uninitialised");

 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t size) : data_(size == 0 ? nullptr : static_cast<T*>(aligned_bytes(bytes_of(size)))), size_(size) {}

  // Gives an array of so many bytes its memory.
  void allocate(int64_t bytes) { *this = AlignedArray(bytes / static_cast<int64_t>(sizeof(T))); }

  // Points it at so many bytes of someone else, who outlives it; whether they may be written is for them to say.
  void view(char* begin, int64_t bytes) {
    data_ = std::unique_ptr<T, Free>(reinterpret_cast<T*>(begin), Free{false});
    size_ = bytes / static_cast<int64_t>(sizeof(T));
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return size_; }

 private:
  struct Free {
    bool owned = true;
    void operator()(T* bytes) const noexcept {
      if (owned) free_aligned_bytes(bytes);
    }
  };
  static size_t bytes_of(int64_t size) {
    if (size < 0 || size > PTRDIFF_MAX / static_cast<int64_t>(sizeof(T))) throw std::bad_alloc();
    return static_cast<size_t>(size) * sizeof(T);
  }
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace llada
