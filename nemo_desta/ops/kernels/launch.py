"""Launch parameters of the kernels: the pieces of a row, the warps, the number of programs.

The choice is a rule, not a race: a tuner that times the candidates may decide otherwise on the next day, and with
another number of warps the sums run in another order, so that a resumed run would leave its curve. `candidates` lists
what may be chosen, the rule's choice first; ahead-of-time checks compile all of them, and the environment variable
``NEMO_DESTA_TUNE=1`` makes `Tuner` time them on the device at hand.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

logger = logging.getLogger(__name__)

WARP = 32
VECTOR = 8  # channels of half precision in one 16-byte load
MAX_WARPS = 8
MAX_REGISTERS = 255  # per thread, the hardware's own limit
MAX_CANDIDATES = 2
#: Warps per multiprocessor of a backward kernel; each program walks over many windows and keeps its own partial sums.
WARPS_PER_SM = 8
#: Programs where there is no multiprocessor to count (Triton's interpreter).
CPU_PROGRAMS = 3


@dataclass(frozen=True)
class Launch:
    """One way to run a kernel on rows of ``channels``."""

    channels: int
    num_warps: int

    @property
    def lanes(self) -> int:
        """Threads of a program."""
        return WARP * self.num_warps

    @property
    def width(self) -> int:
        """Channels of a whole piece: 16 bytes of half precision per thread, less for narrow rows."""
        return max(self.lanes, min(VECTOR * self.lanes, triton.next_power_of_2(self.channels)))

    @property
    def last(self) -> int:
        """Channels of the piece behind the whole ones; 0 if they fill the row."""
        rest = self.channels % self.width
        return max(self.lanes, triton.next_power_of_2(rest)) if rest else 0

    @property
    def channels_per_lane(self) -> int:
        """Registers that one row takes in every thread."""
        return (self.channels // self.width * self.width + self.last) // self.lanes

    def options(self) -> dict[str, int]:
        """What Triton's compiler is told: without the explicit limit ptxas spills now and then for more occupancy."""
        return {"num_warps": self.num_warps, "maxnreg": MAX_REGISTERS}

    def constants(self) -> dict[str, int]:
        """The kernel's compile-time arguments about rows."""
        return {"C": self.channels, "WIDTH": self.width, "LAST": self.last}


def candidates(channels: int, rows_held: int, max_row_registers: int) -> list[Launch]:
    """Launches whose held rows fit the registers, the fewest warps first; at most two.

    One warp per program needs no barrier and the fewest instructions; more warps share a row when one would spill.

    Args:
        channels: C.
        rows_held: rows that a program keeps through its loop, as M running sums.
        max_row_registers: registers per thread that these rows may take; found by compiling (docs/explain/kernel.md).
    """
    launches = [Launch(channels, 2**i) for i in range(MAX_WARPS.bit_length())]
    # a wider program than the row has channels would idle
    useful = [one for one in launches if one.num_warps == 1 or one.channels >= one.width // 2]
    fitting = [one for one in useful if one.channels_per_lane * rows_held <= max_row_registers]
    return fitting[:MAX_CANDIDATES] or useful[-1:]


def num_programs(num_items: int, launch: Launch, device: torch.device) -> int:
    """Programs of a backward kernel over ``num_items`` windows or rows: enough to fill the device once."""
    if device.type != "cuda":
        return min(num_items, CPU_PROGRAMS)
    return min(num_items, max(1, WARPS_PER_SM // launch.num_warps) * _multiprocessors(device))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


class Frames(NamedTuple):
    """Layers as they lie in memory: frame t of clip b begins ``b * clip_stride + t * C`` elements in, in each."""

    layers: tuple[torch.Tensor, ...]
    frames_per_clip: int
    clip_stride: int


def in_place(layers: Sequence[torch.Tensor]) -> Frames:
    """N tensors (B, T, C), copied only where they are not a plain cut of the time axis, or differ in layout."""
    first = layers[0]
    _, num_frames, channels = first.shape
    plain = first.stride(2) == 1 and first.stride(1) == channels
    if not plain or any(layer.stride() != first.stride() for layer in layers):
        layers = [layer.contiguous() for layer in layers]
    return Frames(tuple(layers), num_frames, layers[0].stride(0))


class Tuner:
    """Remembers the fastest candidate per key; measures only where ``NEMO_DESTA_TUNE=1`` asks for it."""

    def __init__(self, measure: Callable[[Callable[[], object]], float] | None = None) -> None:
        """measure: seconds (or any unit) of a call; Triton's median on the device by default."""
        self._measure = measure or (lambda run: triton.testing.do_bench(run, return_mode="median"))
        self._chosen: dict[tuple, Launch] = {}

    def choose(self, key: tuple, launches: Sequence[Launch], run: Callable[[Launch], object]) -> Launch:
        """The first of ``launches``, or, when tuning, the one whose ``run`` is fastest for this key."""
        if len(launches) == 1 or os.environ.get("NEMO_DESTA_TUNE") != "1":
            return launches[0]
        if key not in self._chosen:
            times = {launch: self._measure(lambda launch=launch: run(launch)) for launch in launches}
            self._chosen[key] = min(times, key=times.__getitem__)
            logger.info("%s: %s", key, ", ".join(f"{one.num_warps} warps {t:.4f} ms" for one, t in times.items()))
        return self._chosen[key]


#: The tuner of all kernels; checks and benchmarks replace it to try every candidate.
tuner = Tuner()


def choose(key: tuple, launches: Sequence[Launch], run: Callable[[Launch], object]) -> Launch:
    """See `Tuner.choose`."""
    return tuner.choose(key, launches, run)
