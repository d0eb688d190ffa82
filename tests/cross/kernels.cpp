// Every kernel of the named builds against the scalar build: odd sizes, tails, unaligned buffers, extremes. Integers are compared bit
// by bit, floats within a tolerance that is derived where it stands. One C++ program, for processors that only an emulator offers.
//
//   kernels neon neondot
#include <cstdio>
#include <exception>

#include "check.h"
#include "comparisons.h"
#include "kernels/dispatch.h"

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  try {
    const llada::KernelTable& scalar = llada::kernels_for("scalar");
    for (int i = 1; i < argc; ++i) {
      const llada::KernelTable& table = llada::kernels_for(argv[i]);
      cross::gemm(table, scalar);
      cross::integer_gemms(table, scalar);
      cross::elementwise(table, scalar);
      cross::attention(table, scalar);
      cross::statistics(table, scalar);
    }
  } catch (const std::exception& e) {
    std::printf("%s\n", e.what());
    return 2;
  }
  std::printf("%d failures\n", cross::failures);
  return cross::failures != 0;
}
