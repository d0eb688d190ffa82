// Chooses one kernel table, once per model.
#pragma once

#include <string>

#include "kernels/table.h"

namespace llada {

// The table of the named build. Throws std::invalid_argument when it is absent or the processor cannot run it.
const KernelTable& kernels_for(const std::string& isa);

}  // namespace llada
