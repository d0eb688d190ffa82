// Parallel regions: every item is done once, whoever does it, and a thread that is held up loses its share to the others.
#include "base/team.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

using llada::Team;

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) {                                              \
      std::printf("line %d: expected %s\n", __LINE__, #condition);   \
      std::exit(1);                                                  \
    }                                                                \
  } while (false)

// Every item once, in ranges that are not empty; one range alone when there are fewer items than two grains.
void covers_all_items() {
  for (int threads : {1, 2, 3, 5}) {
    Team team(threads, {});
    for (int64_t items : {0, 1, 2, 7, 64, 65, 1000, 4099}) {
      for (int64_t grain : {1, 3, 50, 5000}) {
        std::vector<std::atomic<int>> done(static_cast<size_t>(items));
        std::atomic<int> ranges{0};
        team.split(items, grain, [&](int64_t begin, int64_t end, int thread) {
          CHECK(0 <= begin && end <= items && (begin < end || items == 0) && 0 <= thread && thread < threads);
          ++ranges;
          for (int64_t i = begin; i < end; ++i) ++done[static_cast<size_t>(i)];
        });
        for (const auto& count : done) CHECK(count == 1);
        if (threads == 1 || items < 2 * grain) CHECK(ranges == 1);
      }
    }
  }
}

// Whichever thread is held in its first range, the others finish all the rest meanwhile: a share that nobody else takes from would never end.
void takes_from_a_thread_that_is_held_up() {
  constexpr int64_t kItems = 3000;
  for (int threads : {2, 3}) {
    Team team(threads, {});
    for (int held = 0; held < threads; ++held) {
      std::atomic<int64_t> done{0};
      std::atomic<bool> first{true};
      team.split(kItems, 1, [&](int64_t begin, int64_t end, int thread) {
        const int64_t own = end - begin;
        if (thread == held && first.exchange(false)) {
          CHECK(own <= kItems / threads / 2 + kItems / 16);  // half of its share
          while (done.load() < kItems - own) std::this_thread::yield();
        }
        done += own;
      });
      CHECK(done == kItems);
    }
  }
}

// The others end their ranges, and the team goes on working.
void passes_on_exceptions() {
  Team team(3, {});
  for (int64_t bad : {0, 500, 999}) {
    bool caught = false;
    try {
      team.split(1000, 1, [&](int64_t begin, int64_t end, int) {
        if (begin <= bad && bad < end) throw std::runtime_error("bad");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    CHECK(caught);
    std::atomic<int64_t> sum{0};
    team.split(1000, 1, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    CHECK(sum == 1000);
  }
}

int main() {
  covers_all_items();
  takes_from_a_thread_that_is_held_up();
  passes_on_exceptions();
}
