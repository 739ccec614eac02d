"""Kernels that the ahead-of-time gate must refuse, compiled for sm_90; run as a script by `test_aot`."""

import contextlib
import io
import json
import sys

import torch
import triton
import triton.language as tl

from benchmarks.kernels.aot import main, pretend_gpu
from benchmarks.kernels.sass import problems, read_binary
from nemo_desta.ops.kernels import launch


@triton.jit
def copy_kernel(source_ptr, target_ptr, WIDTH: tl.constexpr):
    lane = tl.arange(0, WIDTH)
    tl.store(target_ptr + lane, tl.load(source_ptr + lane))


@triton.jit
def atomic_kernel(source_ptr, target_ptr, WIDTH: tl.constexpr):
    tl.atomic_add(target_ptr, tl.sum(tl.load(source_ptr + tl.arange(0, WIDTH)), 0))


@triton.jit
def narrow_kernel(source_ptr, target_ptr, WIDTH: tl.constexpr):
    lane = 3 * tl.arange(0, WIDTH)
    tl.store(target_ptr + lane, tl.load(source_ptr + lane))


def inspect(kernel: triton.JITFunction, **options: int) -> list[str]:
    """What the gate says about one kernel on rows of 1024 channels."""
    said: list[str] = []

    def judge(**found) -> None:
        said.extend(problems(read_binary(shape="1024", frame=4096, **found)))

    with pretend_gpu(90, judge):
        kernel[(1,)](torch.zeros(3072), torch.zeros(3072), WIDTH=1024, num_warps=1, **options)
    return said


def gate_with_too_few_registers() -> tuple[int, str]:
    """Status and complaints of the whole gate when every launch gets 32 registers per thread."""
    launch.MAX_REGISTERS = 32
    complaints = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(complaints):
        status = main(["--arch", "80", "--jobs", "1", "--shapes", "stack-bf16-N1-M1-C768"])
    return status, complaints.getvalue()


if __name__ == "__main__":
    json.dump(
        {
            "good": inspect(copy_kernel),
            "spills": inspect(copy_kernel, maxnreg=24),
            "atomic": inspect(atomic_kernel),
            "narrow": inspect(narrow_kernel),
            "gate": gate_with_too_few_registers(),
        },
        sys.stdout,
    )
