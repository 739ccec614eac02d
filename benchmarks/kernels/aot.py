"""Gate without a GPU: compiles every launch that may be chosen, for real architectures, and reads the machine code.

    python -m benchmarks.kernels.aot [--arch 80 90 100] [--shapes attention-bf16-N4-M1-C1280 ...] [--json FILE]

The operators themselves are called, on memory of the CPU, with a driver that pretends to be the GPU: what is compiled
has exactly the signature, constants and options that a launch on that GPU would have. Exits with 1 if a kernel spills
registers, lacks 128-bit loads or holds an atomic. Needs the package triton, which brings assembler and disassembler.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.kernels.sass import Binary, problems, read_binary
from nemo_desta.ops.kernels import launch, mix_pool, mix_stack
from nemo_desta.ops.kernels.launch import WARPS_PER_SM, Tuner

ARCHS = (80, 90, 100)  # A100, H100 and H200, B200
#: Widest and heaviest of what is used: Whisper-large (1280), BEATs, SSLAM (768), 4 layers; w2v-BERT, MuQ, EAT-large,
#: HuBERT (1024), 5 layers; then 8 layers, 4 queries.
SHAPES = (
    "attention-bf16-N4-M1-C1280",
    "attention-bf16-N8-M1-C1280",
    "attention-bf16-N8-M4-C1280",
    "attention-bf16-N4-M1-C768",
    "attention-bf16-N5-M1-C1024",
    "attention-fp32-N1-M2-C1280",
    "stack-bf16-N8-M1-C768",
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: No multiple of 16 and not 1, so that Triton compiles the general case; K changes neither registers nor loads.
CLIPS, FRAMES, WINDOWS, K = 2, 9, 3, 4


class Shape(NamedTuple):
    """N layers of C channels, M queries."""

    mode: str
    dtype: str
    num_layers: int
    num_queries: int
    channels: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From MODE-DTYPE-N#-M#-C#."""
        match = re.fullmatch(r"(attention|stack)-(bf16|fp16|fp32)-N(\d+)-M(\d+)-C(\d+)", text)
        if match is None:
            raise ValueError(f"shape is {text!r}; expected for example {SHAPES[0]}, mode attention or stack")
        return cls(match[1], match[2], *map(int, match.groups()[2:]))

    def __str__(self) -> str:
        return f"{self.mode}-{self.dtype}-N{self.num_layers}-M{self.num_queries}-C{self.channels}"

    @property
    def frame_bytes(self) -> int:
        """One frame of all layers."""
        return self.num_layers * self.channels * DTYPES[self.dtype].itemsize

    @property
    def row_bytes(self) -> int:
        """One row of the output's gradient, and of the pooled vectors in float32."""
        return self.channels * (DTYPES[self.dtype].itemsize + 4)


def main(argv: list[str] | None = None) -> int:
    """Compile, print the table, say what is wrong; the process's exit status."""
    args = _parse(argv)
    started = time.perf_counter()
    jobs = [(shape, arch, forward) for shape in args.shapes for arch in args.arch for forward in (False, True)]
    if args.jobs == 1:
        results = [compile_all(*job) for job in jobs]
    else:  # spawned: a forked child would hang on the threads of its parent's torch
        with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
            results = pool.starmap(compile_all, jobs, chunksize=1)
    binaries = sorted({b for result in results for b in result}, key=dataclasses.astuple)
    print(table(binaries))
    found = [f"{b.kernel} {b.shape} sm_{b.arch}, {b.warps} warps: {p}" for b in binaries for p in problems(b)]
    seconds = time.perf_counter() - started
    print(f"\n{len(binaries)} binaries by Triton {triton.__version__} in {seconds:.0f} s, {len(found)} problems")
    if found:
        print(*found, sep="\n", file=sys.stderr)
    if args.json:
        records = [
            dataclasses.asdict(b) | {"programs_per_sm": b.programs_per_sm, "problems": problems(b)} for b in binaries
        ]
        with open(args.json, "w") as file:
            json.dump({"triton": triton.__version__, "seconds": round(seconds), "binaries": records}, file, indent=1)
    return 1 if found or not binaries else 0


def compile_all(shape: Shape, arch: int, forward: bool) -> list[Binary]:
    """Every launch of one direction."""
    binaries: list[Binary] = []

    def read(kernel: str, warps: int, **found: Any) -> None:
        launched = {} if forward else {"launched": WARPS_PER_SM // warps}  # backward fills the device once
        of_rows = "rows" in kernel  # it reads pooled vectors, not layers
        name = f"{shape.mode}-{shape.dtype}-C{shape.channels}" if of_rows else str(shape)
        frame = shape.row_bytes if of_rows else shape.frame_bytes
        binaries.append(read_binary(kernel=kernel, shape=name, frame=frame, warps=warps, **launched, **found))

    tuner = Tuner(measure=lambda run: (run(), 0.0)[1])  # it tries all candidates, and so compiles them
    with pretend_gpu(arch, read), mock.patch.dict(os.environ, NEMO_DESTA_TUNE="1"):
        with mock.patch.object(launch, "tuner", tuner):
            _call_operator(shape, forward)
    return binaries


def _call_operator(shape: Shape, forward: bool) -> None:
    """On memory that is never read: nothing runs."""
    C, N, M, P = shape.channels, shape.num_layers, shape.num_queries, WINDOWS
    dtype = DTYPES[shape.dtype]
    layers = [torch.zeros(CLIPS, FRAMES, C, dtype=dtype) for _ in range(N)]
    weights, gain, bias, query, position = (torch.zeros(s) for s in ((N,), (C,), (C,), (M, C), (M, K)))
    table = torch.zeros(P, dtype=torch.int64), torch.zeros(P, dtype=torch.int64)
    of_frames = torch.zeros(P, K), torch.zeros(P, K)
    if shape.mode == "stack" and forward:
        mix_stack.stack_forward(layers, weights, gain, bias, *table, K)
    elif shape.mode == "stack":
        mix_stack.stack_backward(layers, weights, gain, *table, *of_frames, torch.zeros(P, K, C, dtype=dtype))
    elif forward:
        mix_pool.pool_forward(layers, weights, gain, bias, query, position, *table)
    else:
        saved = [torch.zeros(P, M, C), torch.zeros(P, M, K), torch.zeros(P, M), *of_frames]
        grad = torch.zeros(P, M, C, dtype=dtype)
        mix_pool.pool_backward(layers, weights, gain, query, position, *table, saved, grad)


@contextmanager
def pretend_gpu(arch: int, compiled: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, a kernel launched on CPU memory is compiled for sm_``arch``, handed over, and not run.

    ``compiled`` gets the keyword arguments of `read_binary` but ``shape`` and ``frame``.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 interprets kernels; unset it to compile them")
    launched = []

    def load_binary(name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
        compiled(cubin=cubin, kernel=name, arch=arch, warps=launched[-1].num_warps, shared=shared)
        return None, None, 0, 0, 1024

    def launcher(source: Any, metadata: Any) -> Callable[..., None]:
        launched.append(metadata)
        return lambda *args: None

    target = GPUTarget("cuda", arch, 32)
    driver = SimpleNamespace(
        get_current_device=lambda: arch,  # Triton remembers kernels per device
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
        launcher_cls=launcher,
        utils=SimpleNamespace(
            load_binary=load_binary, get_device_properties=lambda device: {"max_shared_mem": 99 * 1024}
        ),
    )
    triton_driver = triton.runtime.driver
    before = triton_driver._active
    triton_driver.set_active(driver)
    try:
        yield
    finally:
        triton_driver._active = before


def table(binaries: list[Binary]) -> str:
    """One line per binary."""
    lines = [
        "| kernel | shape | sm | warps | registers | shared bytes | programs/SM | KiB in flight/SM | 128-bit loads | "
        "barriers | instructions | verdict |",
        "|---" * 12 + "|",
    ]
    for b in binaries:
        lines.append(
            f"| {b.kernel.removesuffix('_kernel')} | {b.shape} | {b.arch} | {b.warps} | {b.registers} | {b.shared} | "
            f"{b.programs_per_sm} | {b.kib_in_flight:.0f} | {b.wide_loads} | {b.barriers} | {b.instructions} | "
            f"{'FAILS' if problems(b) else 'ok'} |"
        )
    return "\n".join(lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--arch", type=int, nargs="+", default=ARCHS, help="80 for A100, 90 for H100/H200, 100 for B200"
    )
    shapes = [Shape.parse(text) for text in SHAPES]
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", default=shapes, help=f"as {SHAPES[0]}; see SHAPES")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
