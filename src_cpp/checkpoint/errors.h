// What can be wrong with a checkpoint folder.
#pragma once

#include <stdexcept>

namespace llada {

// Missing, unreadable, malformed or contradicting itself.
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Well-formed, and asks for something that this library does not have.
struct UnsupportedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace llada
