#include "c_api/machine.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace llada {

namespace {

constexpr int kMaxThreads = 1024;

int usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// "name value" lines, values in `unit` bytes; "name: value kB" as well.
std::map<std::string, double> table(const char* path, double unit) {
  std::map<std::string, double> values;
  std::ifstream file(path);
  std::string name, rest;
  double value = 0;
  while (file >> name >> value && std::getline(file, rest)) values[name] = value * unit;
  return values;
}

std::optional<double> number(const char* path) {
  std::ifstream file(path);
  double value = 0;
  return file >> value ? std::optional<double>(value) : std::nullopt;
}

}  // namespace

int default_threads() {
  const char* wanted = std::getenv("LLADA_NUM_THREADS");
  if (wanted && *wanted) {
    char* end = nullptr;
    const long threads = std::strtol(wanted, &end, 10);
    if (*end || threads < 1 || threads > kMaxThreads)
      throw std::invalid_argument("LLADA_NUM_THREADS: expected 1 to " + std::to_string(kMaxThreads) + ", found '" + wanted + "'");
    return static_cast<int>(threads);
  }
  int cores = usable_cores();
  std::ifstream file("/sys/fs/cgroup/cpu.max");  // cgroup version 2: "quota period", or "max period"
  double quota = 0, period = 0;
  if (file >> quota >> period && period > 0) cores = std::min(cores, std::max(1, static_cast<int>(quota / period)));
  return std::min(cores, kMaxThreads);
}

std::optional<double> available_memory() {
  std::optional<double> least;
  const auto offer = [&](double bytes) { least = least ? std::min(*least, bytes) : bytes; };
  const auto memory = table("/proc/meminfo", 1024);
  const auto available = memory.find("MemAvailable:");
  if (available != memory.end()) offer(available->second);
  const auto most = number("/sys/fs/cgroup/memory.max"), now = number("/sys/fs/cgroup/memory.current");
  auto used = table("/sys/fs/cgroup/memory.stat", 1);
  if (most && now) offer(*most - *now + used["inactive_file"] + used["active_file"]);
  return least;
}

}  // namespace llada
