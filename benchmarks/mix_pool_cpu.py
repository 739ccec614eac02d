"""What a CPU can say honestly about `mix_pool`: bytes kept for backward, operators called, times of the references.

Bytes do not depend on the device. Ours are measured in Triton's interpreter, in a process of its own, on fewer frames:
a multiple of the states does not depend on their number. Times compare PyTorch with PyTorch; the interpreter's say
nothing and are not shown.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.mix_pool_cases import Case, make_inputs, states_bytes
from benchmarks.mix_pool_variants import REFERENCES, check, outputs, run, saved_bytes, variant

CPU = torch.device("cpu")
#: What is not arithmetic: new memory, other views of old memory, bookkeeping.
SILENT = {
    "aten::" + name
    for name in (
        "empty empty_strided empty_like resize_ as_strided view _reshape_alias _unsafe_view detach alias expand "
        "transpose t permute select slice unsqueeze squeeze unbind result_type lift_fresh item _local_scalar_dense "
        "resolve_conj resolve_neg set_ set_data is_nonzero"
    ).split()
}


def kept_multiples(case: Case, names: tuple[str, ...]) -> dict[str, float]:
    """Bytes kept for backward, in multiples of the states."""
    few, fewer = (dataclasses.replace(case, B=1, T=frames, ragged=False) for frames in (480, 32))
    inputs = make_inputs(few, CPU)
    kept = {name: saved_bytes(variant(name), inputs, few) / states_bytes(few) for name in names if name != "ours"}
    return kept | ({"ours": _saved_by_ours(fewer) / states_bytes(fewer)} if "ours" in names else {})


def op_count(name: str, case: Case, frames: int = 32) -> int:
    """Operators of PyTorch that compute or copy in forward plus backward; of an uncompiled variant."""
    small = dataclasses.replace(case, B=1, T=frames, ragged=False)
    inputs, function = make_inputs(small, CPU), variant(name)
    outputs(function, inputs, small)  # compile first
    with profile(activities=[ProfilerActivity.CPU]) as record:
        outputs(function, inputs, small)
    events = [e for e in record.events() if e.name.startswith("aten::") and e.name not in SILENT]
    return sum(not any(child.name.startswith("aten::") and child.name not in SILENT for child in e.cpu_children)
               for e in events)  # fmt: skip


def times(case: Case, names: tuple[str, ...] = REFERENCES, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Median seconds of forward and of forward plus backward; correct first.

    Seconds of the processor, on one thread: on a shared machine the clock on the wall tells who else is busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _times(case, names, repeats)
    finally:
        torch.set_num_threads(threads)


def _times(case: Case, names: tuple[str, ...], repeats: int) -> dict[str, dict[str, float]]:
    inputs = make_inputs(case, CPU)
    small = dataclasses.replace(case, B=1, T=min(case.T, 64))
    found = {}
    for name in names:
        check(variant(name), make_inputs(small, CPU), small)
        function = variant(name)
        found[name] = {
            "forward_secs": _median(lambda function=function: run(function, inputs, case), repeats),
            "both_secs": _median(lambda function=function: outputs(function, inputs, case), repeats),
        }
    return found


def _median(call: Callable[[], Any], repeats: int) -> float:
    call()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def _saved_by_ours(case: Case) -> int:
    """In a process of its own: whether Triton interprets is settled when the kernels are imported."""
    command = [sys.executable, "-m", "benchmarks.mix_pool_cpu", json.dumps(dataclasses.asdict(case))]
    env = {**os.environ, "TRITON_INTERPRET": "1", "NEMO_DESTA_KERNEL": "triton"}
    root = Path(__file__).parents[1]
    result = subprocess.run(command, env=env, cwd=root, text=True, capture_output=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the interpreter failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    one = Case(**json.loads(sys.argv[1]))
    print(saved_bytes(variant("ours"), make_inputs(one, CPU), one))
