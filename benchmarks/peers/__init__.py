"""Other engines at the same shapes, on the same machine, in turns. Their packages are needed by these benchmarks only."""
