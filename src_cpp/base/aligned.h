// Cache-line aligned memory, owned and uninitialised, or a view of someone else's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
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
  explicit AlignedArray(int64_t size)
      : data_(size > 0 ? static_cast<T*>(aligned_bytes(static_cast<size_t>(size) * sizeof(T))) : nullptr), size_(size) {}

  // Memory of someone else, who outlives the array; writing to it is for them to allow.
  static AlignedArray view(const void* data, int64_t size) {
    AlignedArray array;
    array.data_ = std::unique_ptr<T, Free>(static_cast<T*>(const_cast<void*>(data)), Free{false});
    array.size_ = size;
    return array;
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
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace llada
