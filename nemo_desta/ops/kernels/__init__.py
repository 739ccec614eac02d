"""Triton kernels; importing them needs triton, so `nemo_desta.ops` imports them on first use."""
