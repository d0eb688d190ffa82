// What this machine offers the process, as llada_native/machine.py sees it.
#pragma once

#include <cstdint>
#include <optional>

namespace llada {

// Threads of a new model: LLADA_NUM_THREADS, or the cores this process may use within its cgroup quota. Throws std::invalid_argument.
int default_threads();

// Bytes that can be allocated without swapping, as far as the system tells.
std::optional<double> available_memory();

}  // namespace llada
