// The threads that one forward pass holds.
//
// The process has one lazy pool. A Team takes it for the length of a forward: its workers stay awake, so that starting a parallel
// region costs a store and a load, and they sleep half a millisecond after the Team ends. Callers take turns. After fork() the child
// finds an empty pool. Splitting work over threads never splits a sum, so results do not depend on the number of threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "llada/types.h"

namespace llada {

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

  // Splits [0, items) into one contiguous range a thread, equal within one: body(begin, end, thread). Fewer items than `grain` a
  // thread stay on the caller.
  template <class Body>
  void split(int64_t items, int64_t grain, const Body& body) {
    if (size_ == 1 || items < grain * 2) {
      run_here([&] { body(int64_t{0}, items, 0); });
      return;
    }
    run([&](int thread) {
      const int64_t begin = items * thread / size_, end = items * (thread + 1) / size_;
      if (begin < end) body(begin, end, thread);
    });
  }

  // Called between tiles, a millisecond or less apart: true when the region is to be left.
  bool stopped(int thread) {
    if (outer_) return outer_->stopped(outer_thread_);
    if (thread == 0) poll();
    return stopped_.load(std::memory_order_relaxed);
  }

 private:
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
  const Interrupt interrupt_;
  std::chrono::steady_clock::time_point last_poll_;
  std::atomic<bool> stopped_{false};
};

}  // namespace llada
