"""Benchmarks of llada-native, for asv."""
import os

# Read when NumPy loads OpenBLAS, so unset before any benchmark imports it: the rival of bench_openblas runs the kernels that it
# chooses for this processor, whatever the shell says.
os.environ.pop("OPENBLAS_CORETYPE", None)
