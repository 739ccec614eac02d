"""The gate that compiles kernels for GPUs which are not there: it passes good ones, and it can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which has no build for this platform")

pytestmark = pytest.mark.slow  # 20 s of compilers; `make kernels` runs the gate itself
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("aot") / "aot.json"


@pytest.fixture(scope="module")
def verdicts(report) -> dict[str, list]:
    """In a process of its own: whether Triton compiles or interprets is settled at import."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.bad_kernels", str(report)]
    result = subprocess.run(command, env=env, cwd=ROOT, text=True, capture_output=True, timeout=300)
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


def test_every_launch_of_a_small_shape_is_compiled_judged_and_written(verdicts, report):
    status, printed, complaints = verdicts["passes"]
    assert status == 0 and not complaints, printed[-2000:] + complaints[-2000:]
    binaries = json.loads(report.read_text())["binaries"]
    assert {b["kernel"] for b in binaries} == {
        "pool_forward_kernel",
        "pool_backward_kernel",
        "pool_backward_rows_kernel",
    }
    assert len(binaries) == 5  # two candidates per direction, one for the rows
    for b in binaries:
        assert b["problems"] == [] and b["programs_per_sm"] > 0 and b["kib_in_flight"] > 0
        assert f"| {b['kernel'].removesuffix('_kernel')} | {b['shape']} | 90 | {b['warps']} |" in printed


def test_the_gate_fails_and_names_kernel_shape_and_architecture(verdicts):
    status, _, complaints = verdicts["fails"]
    assert status == 1
    assert "stack_forward_kernel stack-bf16-N1-M1-C768 sm_80, 1 warps: spills" in complaints
