// The threads that one forward pass holds.
//
// The process has one lazy pool. A Team takes it for the length of a forward: its workers stay awake, so that starting a parallel
// region costs a store and a load, and they sleep half a millisecond after the Team ends. Callers take turns. After fork() the child
// finds an empty pool. Splitting work over threads never splits a sum, so results depend neither on their number nor on who did what.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "llada/types.h"

namespace llada {

// What is left of [0, items): a share for each thread, of which it takes half of the rest at a time, and when that is empty the last
// chunk of the fullest one. So shares stay long runs, and nobody waits long for a core that is slower or busy.
class Remainders {
 public:
  Remainders(int64_t items, int threads, int64_t chunks) : items_(items), chunks_(chunks), rests_(static_cast<size_t>(threads)) {
    for (Rest& rest : rests_) rest.chunks.store(pack(0, chunks), std::memory_order_relaxed);
  }

  struct Range {
    int64_t begin, end;  // empty: nothing is left
  };
  Range take(int thread);

 private:
  struct alignas(64) Rest {
    std::atomic<uint64_t> chunks;  // first << 32 | one behind the last
  };
  static uint64_t pack(int64_t first, int64_t last) { return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(last); }
  static int64_t first(uint64_t rest) { return static_cast<int64_t>(rest >> 32); }
  static int64_t last(uint64_t rest) { return static_cast<int64_t>(rest & 0xffffffff); }
  Range range(size_t share, int64_t begin, int64_t end) const;  // of chunks

  const int64_t items_, chunks_;
  std::vector<Rest> rests_;
};

class Team {
 public:
  // Waits for its turn; throws Cancelled when `interrupt` asks for it meanwhile.
  Team(int threads, const Interrupt& interrupt);
  // The calling thread alone, thread `thread` in a region of `outer`: it has the turn and the interrupt of that one.
  Team(Team& outer, int thread);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Runs body(thread) for thread = 0 .. size() - 1; the caller is thread 0. Rethrows the first exception; throws Cancelled.
  template <class Body>
  void run(const Body& body) {
    run([](const void* b, int thread) { (*static_cast<const Body*>(b))(thread); }, &body);
  }

  // Splits [0, items) into ranges, body(begin, end, thread): one a thread, equal within one, or several where a range has `grain` items
  // many times. Fewer items than `grain` a thread stay on the caller.
  template <class Body>
  void split(int64_t items, int64_t grain, const Body& body) {
    if (size_ == 1 || items < grain * 2) {
      run_here([&] { body(int64_t{0}, items, 0); });
      return;
    }
    const int64_t chunks = std::min<int64_t>(kChunks, items / size_ / grain);
    if (chunks < 2) {
      run([&](int thread) {
        const int64_t begin = items * thread / size_, end = items * (thread + 1) / size_;
        if (begin < end) body(begin, end, thread);
      });
      return;
    }
    Remainders remainders(items, size_, chunks);
    run([&](int thread) {
      for (;;) {
        const Remainders::Range range = remainders.take(thread);
        if (range.begin == range.end) return;
        body(range.begin, range.end, thread);
      }
    });
  }

  // Called between tiles, a millisecond or less apart: true when the region is to be left.
  bool stopped(int thread) {
    if (outer_) return outer_->stopped(outer_thread_);
    if (thread == 0) poll();
    return stopped_.load(std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kChunks = 16;  // of a thread's share: at the end of a region threads wait for a thirtieth of it, in the mean

  using Entry = void (*)(const void* body, int thread);
  void run(Entry entry, const void* body);
  void poll();
  void throw_if_stopped() const {
    if (outer_) return outer_->throw_if_stopped();
    if (stopped_.load(std::memory_order_relaxed)) throw Cancelled();
  }

  template <class Body>
  void run_here(const Body& body) {
    body();
    throw_if_stopped();
  }

  const int size_;
  Team* const outer_ = nullptr;
  const int outer_thread_ = 0;
  const void* pool_ = nullptr;  // whose turn it has: of the process that it was made in
  const Interrupt interrupt_;
  std::chrono::steady_clock::time_point last_poll_;
  std::atomic<bool> stopped_{false};
};

}  // namespace llada
