"""The gate that compiles kernels for GPUs which are not there: it passes good ones, and it can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which has no build for this platform")

ROOT = Path(__file__).parents[2]


def python(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: whether Triton compiles or interprets is settled at import."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, text=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list]:
    result = python("-m", "tests.ops.bad_kernels")
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def test_a_plain_copy_passes(verdicts):
    assert verdicts["good"] == []


@pytest.mark.parametrize(
    ("kernel", "words"), [("spills", "STL/LDL"), ("atomic", "1 atomic"), ("narrow", "no 128-bit load")]
)
def test_a_bad_kernel_is_refused_for_its_own_fault_only(verdicts, kernel, words):
    (verdict,) = verdicts[kernel]
    assert words in verdict


def test_every_launch_of_a_small_shape_is_compiled_judged_and_written(tmp_path):
    shape, file = "attention-bf16-N1-M1-C256", tmp_path / "aot.json"
    command = ["-m", "benchmarks.kernels.aot", "--arch", "90", "--jobs", "1", "--json", str(file)]
    result = python(*command, "--shapes", shape)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    binaries = json.loads(file.read_text())["binaries"]
    assert {b["kernel"] for b in binaries} == {
        "pool_forward_kernel",
        "pool_backward_kernel",
        "pool_backward_rows_kernel",
    }
    assert len(binaries) == 5  # two candidates per direction, one for the rows
    for b in binaries:
        assert b["problems"] == [] and b["programs_per_sm"] > 0 and b["kib_in_flight"] > 0
        assert f"| {b['kernel'].removesuffix('_kernel')} | {b['shape']} | 90 | {b['warps']} |" in result.stdout


def test_the_gate_fails_and_names_kernel_shape_and_architecture(verdicts):
    status, complaints = verdicts["gate"]
    assert status == 1
    assert "stack_forward_kernel stack-bf16-N1-M1-C768 sm_80, 1 warps: spills" in complaints
