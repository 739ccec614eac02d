"""Numerics of the projector; the one place that chooses an implementation. Today that is the reference."""

from nemo_desta.ops.reference import mix_pool
from nemo_desta.ops.windows import max_window_frames, num_windows, window_table

__all__ = ["max_window_frames", "mix_pool", "num_windows", "window_table"]
