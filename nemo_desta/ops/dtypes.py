"""Number formats of frozen weights by their names in a config: auto, fastest, float32, bfloat16, float16.

Some CPUs multiply bfloat16 several times as fast as float32, others many times slower; ``fastest`` measures that.
"""

import functools
import logging
import time
from typing import NamedTuple

import torch

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError

__all__ = ["as_dtype", "dtype_name", "suggest_fastest"]

logger = logging.getLogger(__name__)

DTYPES = ("auto", "fastest", "float32", "bfloat16", "float16")
#: bfloat16 must be so many times as fast to be chosen, so that the noise of a measurement does not decide.
MIN_SPEEDUP = 1.5
#: Smaller LLMs are quick in any number format.
MIN_PARAMETERS = 50_000_000
#: (rows, in) x (in, out): the product of a linear layer of a small LLM and 64 positions.
_ROWS, _IN, _OUT = 64, 1024, 2048


class CPUSpeed(NamedTuple):
    """Measured speed of a matrix product in GFLOP/s."""

    float32: float
    bfloat16: float

    @property
    def prefers_bfloat16(self) -> bool:
        return self.bfloat16 >= MIN_SPEEDUP * self.float32


def as_dtype(dtype: torch.dtype | str | None, device: str | None = None) -> torch.dtype:
    """A dtype from itself or its name; None is float32.

    "auto": bfloat16 on a GPU, float32 on a CPU. "fastest": bfloat16 on a GPU, and on a CPU that multiplies it at least
    1.5 times as fast as float32 (measured once per process), else float32. ``device``: "cpu" or a GPU; None: a GPU if
    there is one.

    Raises:
        ConfigError: not the name of a floating type.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'.{nearest(dtype, DTYPES)}")
    if dtype not in ("auto", "fastest"):
        return getattr(torch, dtype)
    if not _on_cpu(device):
        return torch.bfloat16
    return _fastest() if dtype == "fastest" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def suggest_fastest(dtype: torch.dtype | str | None, llm: torch.nn.Module, setting: str) -> None:
    """Log that ``setting`` (a key of a config) can make an LLM faster that "auto" has put on a CPU in float32."""
    cpu = all(parameter.device.type == "cpu" for parameter in llm.parameters())
    if dtype != "auto" or not cpu or sum(p.numel() for p in llm.parameters()) <= MIN_PARAMETERS:
        return
    if (speed := cpu_speed()).prefers_bfloat16:
        logger.info(
            "the LLM computes in float32; this CPU multiplies bfloat16 %.1f times as fast: %s=fastest uses it",
            speed.bfloat16 / speed.float32,
            setting,
        )


@functools.cache
def cpu_speed() -> CPUSpeed:
    """The speed of this CPU with the threads that PyTorch uses now. Takes less than 0.2 s."""
    work = 2e-9 * _ROWS * _IN * _OUT
    float32 = _seconds(torch.float32)
    return CPUSpeed(work / float32, work / _seconds(torch.bfloat16, limit=4 * float32))


@functools.cache
def _fastest() -> torch.dtype:
    speed = cpu_speed()
    chosen = torch.bfloat16 if speed.prefers_bfloat16 else torch.float32
    logger.info(
        "dtype=fastest is %s on this CPU: measured %.0f GFLOP/s in bfloat16, %.0f in float32",
        dtype_name(chosen),
        speed.bfloat16,
        speed.float32,
    )
    return chosen


def _seconds(dtype: torch.dtype, limit: float = float("inf")) -> float:
    """The shortest time of four products after a warm-up; of one, if it takes longer than ``limit``."""
    rows, weight = (torch.ones(size, _IN, dtype=dtype, device="cpu") for size in (_ROWS, _OUT))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        times.append(time.perf_counter() - began)
        if len(times) > 1 and times[-1] > limit:
            break
    return min(times[1:])


def _on_cpu(device: str | None) -> bool:
    return not torch.cuda.is_available() if device is None else torch.device(device).type == "cpu"
