#include "base/aligned.h"

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llada {

namespace {
constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{1} << 21;
}  // namespace

void* aligned_bytes(size_t bytes) {
  const size_t alignment = bytes >= 4 * kHugePage ? kHugePage : kCacheLine;
#ifdef _WIN32
  void* p = _aligned_malloc(bytes, alignment);
#else
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes) != 0) p = nullptr;
#endif
  if (p == nullptr) throw std::bad_alloc();
#ifdef __linux__
  // Weights are streamed front to back by every forward: 2 MiB pages spare most of their TLB misses.
  if (alignment == kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

void free_aligned_bytes(void* bytes) noexcept {
#ifdef _WIN32
  _aligned_free(bytes);
#else
  std::free(bytes);
#endif
}

}  // namespace llada
