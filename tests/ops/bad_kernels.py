"""What `test_aot` looks at, run as a script: kernels that the ahead-of-time gate must refuse, and whole gates."""

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


def gate(*arguments: str) -> tuple[int, str, str]:
    """Status, output and complaints of the whole gate."""
    printed, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        status = main(["--jobs", "1", *arguments])
    return status, printed.getvalue(), complaints.getvalue()


if __name__ == "__main__":
    passes = gate("--arch", "90", "--json", sys.argv[1], "--shapes", "attention-bf16-N1-M1-C256")
    launch.MAX_REGISTERS = 32
    fails = gate("--arch", "80", "--shapes", "stack-bf16-N1-M1-C768")
    json.dump(
        {
            "good": inspect(copy_kernel),
            "spills": inspect(copy_kernel, maxnreg=24),
            "atomic": inspect(atomic_kernel),
            "narrow": inspect(narrow_kernel),
            "passes": passes,
            "fails": fails,
        },
        sys.stdout,
    )
