"""Number formats by name: ``fastest`` follows a measurement, once per process, and says both figures."""

import logging
import time

import pytest
import torch

from nemo_desta.errors import ConfigError
from nemo_desta.ops import dtypes
from nemo_desta.ops.dtypes import as_dtype, cpu_speed, suggest_fastest


@pytest.fixture
def measured(monkeypatch, caplog):
    """Sets how many seconds a product takes in float32 and bfloat16; returns the list of measurements."""
    caplog.set_level(logging.INFO, logger="nemo_desta")
    taken = []

    def set_to(float32, bfloat16):
        def seconds(dtype, limit=None):
            taken.append(dtype)
            return {torch.float32: float32, torch.bfloat16: bfloat16}[dtype]

        monkeypatch.setattr(dtypes, "_seconds", seconds)
        cpu_speed.cache_clear()
        dtypes._fastest.cache_clear()
        return taken

    yield set_to
    cpu_speed.cache_clear()
    dtypes._fastest.cache_clear()


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(0.010, 0.002, torch.bfloat16), (0.010, 0.4, torch.float32), (0.010, 0.008, torch.float32)],
)
def test_fastest_is_what_the_cpu_multiplies_faster(measured, caplog, float32, bfloat16, chosen):
    taken = measured(float32, bfloat16)
    assert [as_dtype("fastest", "cpu") for _ in range(3)] == [chosen] * 3
    assert taken == [torch.float32, torch.bfloat16]  # measured once
    (said,) = caplog.messages
    work = 2e-9 * 64 * 1024 * 2048
    figures = f"{work / bfloat16:.0f} GFLOP/s in bfloat16, {work / float32:.0f} in float32"
    assert str(chosen).removeprefix("torch.") in said and figures in said


def test_auto_and_a_gpu_need_no_measurement(measured, monkeypatch):
    taken = measured(0.010, 0.002)
    assert as_dtype("auto", "cpu") == torch.float32
    assert as_dtype("fastest", "cuda") == as_dtype("auto", "cuda:1") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert as_dtype("fastest") == torch.bfloat16
    assert as_dtype("float16") == as_dtype(torch.float16) == torch.float16 and as_dtype(None) == torch.float32
    assert not taken


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown dtype 'fast'. Did you mean 'fastest'"):
        as_dtype("fast")


def test_the_measurement_is_short():
    cpu_speed.cache_clear()
    began = time.process_time()
    with torch.device("meta"):  # where sizes are checked without weights
        speed = cpu_speed()
    assert time.process_time() - began < 1.0
    assert 0.1 < speed.float32 < 1e5 and 0.1 < speed.bfloat16 < 1e5


def test_a_large_llm_in_float32_is_told_of_a_cpu_that_prefers_bfloat16(measured, caplog):
    large, small = (torch.nn.Linear(10_000, 1, bias=False) for _ in range(2))
    large.weight = torch.nn.Parameter(torch.empty(1).expand(51_000_000))
    taken = measured(0.010, 0.002)
    suggest_fastest("float32", large, "x")
    suggest_fastest("auto", small, "x")
    suggest_fastest("auto", torch.nn.Linear(8000, 8000, device="meta"), "x")
    assert not taken and not caplog.messages
    suggest_fastest("auto", large, "model.llm.dtype")
    assert caplog.messages == [
        "the LLM computes in float32; this CPU multiplies bfloat16 5.0 times as fast: model.llm.dtype=fastest uses it"
    ]
    measured(0.010, 0.009)
    suggest_fastest("auto", large, "model.llm.dtype")
    assert len(caplog.messages) == 1
