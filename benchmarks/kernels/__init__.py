"""The kernels, compiled ahead of time and read back as machine code."""
