// What the machine offers and what the library uses of it.
#pragma once

#include <string>
#include <vector>

namespace llada {

// One instruction-set build of the kernels.
struct Isa {
  std::string name;  // "scalar", "avx2", "avx512"
  bool supported;    // by this processor and operating system
};

// Every build of the kernels in this library, slowest first.
std::vector<Isa> compiled_isas();

// The build that new models use: the fastest supported one, or the one that LLADA_ISA names.
// Throws std::invalid_argument when LLADA_ISA names a build that is absent or that the processor lacks.
std::string active_isa();

}  // namespace llada
