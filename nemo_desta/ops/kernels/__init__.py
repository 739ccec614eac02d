"""Triton kernels of this room; importing them needs triton, so `nemo_desta.ops` does it where one is asked for."""
