"""Times of `mix_pool` on a GPU: correct first, the same bits twice, then medians against the copy rate of that GPU.

Written for one run of a few minutes; a variant that fails is reported and the others go on.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.mix_pool_cases import Case, Inputs, input_sets, make_inputs, minimal_bytes, states_bytes
from benchmarks.mix_pool_variants import check, outputs, run, saved_bytes, variant

QUANTILES = [0.5, 0.2, 0.8]
CHECKED_FRAMES = 200  # float64 of the whole batch would not fit beside it


def copy_rate(device: torch.device, num_bytes: int = 2**30) -> float:
    """Bytes read plus bytes written per second when one large tensor is copied."""
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / (1e-3 * _bench(lambda: target.copy_(source), [])[0])


def measure(case: Case, name: str, device: torch.device, copy_bytes_per_sec: float) -> dict[str, Any]:
    """One variant on one shape: times in ms as median, 20 % and 80 % quantile; rates as share of the copy rate.

    ``*_ms`` is what a caller waits for, a process that launches too slowly included; ``*_kernels_ms`` is what the GPU
    works, and what the rates are of.
    """
    small = dataclasses.replace(case, B=min(case.B, 2), T=min(case.T, CHECKED_FRAMES))
    function = variant(name)
    check(function, make_inputs(small, device), small)
    function = variant(name)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    sets = list(input_sets(case, device, cache))
    identical = _same_bits(function, sets[0], case)

    turns = itertools.cycle(sets)
    forward = _bench(lambda: run(function, next(turns), case), [])
    leaves = [p for inputs in sets for p in inputs.parameters.values()]

    def both() -> None:
        inputs = next(turns)
        run(function, inputs, case).backward(inputs.grad)

    backward = _backward(function, sets, case, leaves)
    times = {"forward": forward, "backward": backward, "both": _bench(both, leaves)}
    kernels = {
        "forward": _kernel_ms(lambda: run(function, next(turns), case)),
        "both": _kernel_ms(both),
    }
    kernels["backward"] = kernels["both"] - kernels["forward"]
    least = minimal_bytes(case)
    moved = {"forward": least, "backward": least, "both": 2 * least}
    rates = {key: moved[key] / (1e-3 * value) for key, value in kernels.items()}
    return {
        "case": str(case),
        "variant": name,
        **{f"{key}_ms": value[0] for key, value in times.items()},
        **{f"{key}_ms_20": value[1] for key, value in times.items()},
        **{f"{key}_ms_80": value[2] for key, value in times.items()},
        **{f"{key}_kernels_ms": value for key, value in kernels.items()},
        **{f"{key}_of_copy": rate / copy_bytes_per_sec for key, rate in rates.items()},
        "peak_memory_of_states": _peak(function, sets[0], case) / states_bytes(case),
        "saved_of_states": saved_bytes(function, sets[0], case) / states_bytes(case),
        "same_bits_twice": identical,
    }


def tune(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Time of every launch that may be chosen, the rule's choice first, per kernel."""
    from nemo_desta.ops.kernels import launch

    rows: list[dict[str, Any]] = []

    class Recorder:
        """In place of `launch.Tuner`: times all candidates, then takes the rule's."""

        def choose(self, key: tuple, launches: list[Any], call: Callable[[Any], Any]) -> Any:
            for i, one in enumerate(launches):
                ms = _bench(lambda one=one: call(one), [])[0]
                row = {"case": str(case), "kernel": key[0], "warps": one.num_warps, "ms": ms, "rule": i == 0}
                rows.append(row)
            return launches[0]

    inputs = make_inputs(case, device)
    with mock.patch.object(launch, "tuner", Recorder()):
        outputs(variant("ours"), inputs, case)
    return rows


def _backward(
    function: Callable[..., torch.Tensor], sets: list[Inputs], case: Case, leaves: list[torch.Tensor]
) -> list[float]:
    """On graphs that are made once and die with this function: they hold much memory."""
    turns = itertools.cycle([(run(function, inputs, case), inputs.grad) for inputs in sets])

    def backward() -> None:
        out, grad = next(turns)
        out.backward(grad, retain_graph=True)

    return _bench(backward, leaves)


def _same_bits(function: Callable[..., torch.Tensor], inputs: Inputs, case: Case) -> bool:
    first, second = ({k: v.clone() for k, v in outputs(function, inputs, case).items()} for _ in range(2))
    return all(torch.equal(value, second[name]) for name, value in first.items())


def _peak(function: Callable[..., torch.Tensor], inputs: Inputs, case: Case) -> int:
    """Beside what is there before."""
    outputs(function, inputs, case)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs(function, inputs, case)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _kernel_ms(call: Callable[[], Any], repeats: int = 10) -> float:
    """Mean time that the GPU spends in kernels, copies and fills of one call; gaps between them do not count."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(repeats):
            call()
        torch.cuda.synchronize()
    on_gpu = [event for event in record.key_averages() if event.device_type == DeviceType.CUDA]
    return sum(event.self_device_time_total for event in on_gpu) / repeats / 1e3


def _bench(call: Callable[[], Any], leaves: list[torch.Tensor]) -> list[float]:
    """Median and quantiles in ms, with a cold cache; gradients of ``leaves`` are dropped before each call."""
    from triton.testing import do_bench

    return do_bench(call, warmup=20, rep=120, grad_to_none=leaves or None, quantiles=QUANTILES)
