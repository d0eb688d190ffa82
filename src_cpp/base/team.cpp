#include "base/team.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#endif

namespace llada {

namespace {

constexpr auto kPollInterval = std::chrono::milliseconds(10);
// About 50 microseconds of spinning before a waiting thread offers its core to others.
constexpr int kSpins = 2048;
// A worker whose Team has ended polls so long before it sleeps: the next Team of a decoding step, after the sampler's turn, finds it
// awake. Waking a sleeping thread takes 10 to 30 microseconds, and milliseconds where the system starts it on a busy core.
constexpr auto kLinger = std::chrono::microseconds(500);

void relax(int& spins) {
  if (++spins > kSpins) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// State of the workers. Allocated once, replaced in a forked child, never destroyed: a worker may outlive static destructors.
struct Pool {
  std::timed_mutex turn;  // held by the Team in charge

  std::mutex mutex;  // guards team, failure
  std::condition_variable wake;
  int team = 0;     // threads of the Team in charge; the workers beyond them sleep on
  int workers = 0;  // started so far
  std::exception_ptr failure;

  // A region is announced by one store of (number << 16 | team size): a worker that was not in the last team reads both at once.
  std::atomic<uint64_t> region{0};
  std::atomic<int> running{0};
  std::atomic<bool> spinning{false};
  void (*entry)(const void*, int) = nullptr;
  const void* body = nullptr;

  void work(int thread, uint64_t seen);
  void grow(int threads);
};

Pool* pool = new Pool;

#ifndef _WIN32
// The parent's workers do not exist in the child and its locks may be held by them: abandon all of it.
void abandon_pool() { pool = new Pool; }
const int registered = pthread_atfork(nullptr, nullptr, abandon_pool);
#endif

void Pool::work(int thread, uint64_t seen) {
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return thread < team; });
    }
    int spins = 0;
    bool idle = false;
    std::chrono::steady_clock::time_point since;
    for (;;) {
      const uint64_t now = region.load(std::memory_order_acquire);
      if (now == seen) {
        relax(spins);
        if (spinning.load(std::memory_order_acquire)) {
          idle = false;  // no clock is read between the regions of a forward
        } else if (!idle) {
          idle = true;
          since = std::chrono::steady_clock::now();
        } else if (std::chrono::steady_clock::now() - since > kLinger) {
          break;
        }
        continue;
      }
      seen = now;
      if (thread >= static_cast<int>(now & 0xffff)) break;
      spins = 0;
      try {
        entry(body, thread);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!failure) failure = std::current_exception();
      }
      running.fetch_sub(1, std::memory_order_release);
    }
  }
}

// Called by the Team in charge, between regions.
void Pool::grow(int threads) {
  while (workers + 1 < threads) {
    std::thread(&Pool::work, this, workers + 1, region.load(std::memory_order_relaxed)).detach();
    ++workers;
  }
}

}  // namespace

Remainders::Range Remainders::range(size_t share, int64_t begin, int64_t end) const {
  const int64_t threads = static_cast<int64_t>(rests_.size()), own = static_cast<int64_t>(share);
  const int64_t from = items_ * own / threads, length = items_ * (own + 1) / threads - from;
  return {from + length * begin / chunks_, from + length * end / chunks_};
}

Remainders::Range Remainders::take(int thread) {
  const size_t own = static_cast<size_t>(thread);
  uint64_t rest = rests_[own].chunks.load(std::memory_order_relaxed);
  while (first(rest) < last(rest)) {
    const int64_t half = first(rest) + (last(rest) - first(rest) + 1) / 2;
    if (rests_[own].chunks.compare_exchange_weak(rest, pack(half, last(rest)), std::memory_order_relaxed))
      return range(own, first(rest), half);
  }
  for (;;) {
    size_t fullest = own;
    int64_t most = 0;
    for (size_t share = 0; share < rests_.size(); ++share) {
      const uint64_t others = rests_[share].chunks.load(std::memory_order_relaxed);
      if (last(others) - first(others) <= most) continue;
      most = last(others) - first(others), fullest = share, rest = others;
    }
    if (most == 0) return {0, 0};
    if (rests_[fullest].chunks.compare_exchange_weak(rest, pack(first(rest), last(rest) - 1), std::memory_order_relaxed))
      return range(fullest, last(rest) - 1, last(rest));
  }
}

Team::Team(int threads, const Interrupt& interrupt)
    : size_(threads), interrupt_(interrupt), last_poll_(std::chrono::steady_clock::now()) {
  while (!pool->turn.try_lock_for(kPollInterval)) {
    if (interrupt_.poll && interrupt_.poll(interrupt_.context)) throw Cancelled();
  }
  pool_ = pool;
  if (size_ == 1) return;
  try {
    pool->grow(size_);
  } catch (const std::system_error& e) {
    const int running = pool->workers + 1;
    pool->turn.unlock();
    throw std::runtime_error("expected " + std::to_string(threads) + " threads, found " + std::to_string(running) +
                             ", and the system starts no more: " + e.what());
  } catch (...) {
    pool->turn.unlock();
    throw;
  }
  {
    std::lock_guard<std::mutex> lock(pool->mutex);
    pool->team = size_;
  }
  pool->spinning.store(true, std::memory_order_release);
  pool->wake.notify_all();
}

Team::Team(Team& outer, int thread) : size_(1), outer_(&outer), outer_thread_(thread), interrupt_{} {}

Team::~Team() {
  if (outer_ || pool_ != pool) return;
  if (size_ > 1) {
    {
      std::lock_guard<std::mutex> lock(pool->mutex);
      pool->team = 0;
    }
    pool->spinning.store(false, std::memory_order_release);
  }
  pool->turn.unlock();
}

void Team::run(Entry entry, const void* body) {
  if (size_ == 1) {
    entry(body, 0);
    throw_if_stopped();
    return;
  }
  if (pool_ != pool) throw std::runtime_error("a forward pass cannot go on in a child that was forked during it");
  pool->entry = entry;
  pool->body = body;
  pool->running.store(size_ - 1, std::memory_order_relaxed);
  const uint64_t number = (pool->region.load(std::memory_order_relaxed) >> 16) + 1;
  pool->region.store(number << 16 | static_cast<uint64_t>(size_), std::memory_order_release);
  std::exception_ptr failure;
  try {
    entry(body, 0);
  } catch (...) {
    failure = std::current_exception();
  }
  for (int spins = 0; pool->running.load(std::memory_order_acquire) > 0;) relax(spins);
  {
    std::lock_guard<std::mutex> lock(pool->mutex);
    if (!failure) failure = pool->failure;
    pool->failure = nullptr;
  }
  if (failure) std::rethrow_exception(failure);
  throw_if_stopped();
}

void Team::poll() {
  if (!interrupt_.poll) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_poll_ < kPollInterval) return;
  last_poll_ = now;
  if (interrupt_.poll(interrupt_.context)) stopped_.store(true, std::memory_order_relaxed);
}

}  // namespace llada
