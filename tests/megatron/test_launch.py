"""The helper that starts processes: results by rank, failures with their output, an end to everything that hangs."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.megatron.launch import launch

pytestmark = pytest.mark.slow


def summed(values):
    total = values[dist.get_rank()].clone()
    dist.all_reduce(total)
    return {"rank": dist.get_rank(), "total": total}


def variable_of_caller():
    return [dist.get_rank(), os.environ.get("SET_BY_THE_CALLER", "")]


def fails_on_one(hang):
    """Rank 1 fails; rank 0 waits for it in a collective."""
    if dist.get_rank() == 1:
        print("about to fail")
        raise ValueError("as it should")
    while hang:
        time.sleep(0.1)


def hangs(folder):
    with open(os.path.join(folder, f"{os.getpid()}"), "w"):
        time.sleep(600)


def test_every_rank_returns_its_result():
    results = launch("tests.megatron.test_launch.summed", 2, values=torch.tensor([2.0, 3.0]))
    assert [result["rank"] for result in results] == [0, 1]
    assert all(result["total"] == 5 for result in results)


def test_every_rank_has_the_environment_of_its_own_caller(monkeypatch):
    """All processes come from one server, which keeps the environment of the first call."""
    for value in ("first", "second"):
        monkeypatch.setenv("SET_BY_THE_CALLER", value)
        assert launch("tests.megatron.test_launch.variable_of_caller", 2) == [[0, value], [1, value]]
    monkeypatch.delenv("SET_BY_THE_CALLER")
    assert launch("tests.megatron.test_launch.variable_of_caller", 1) == [[0, ""]]


def test_a_failing_rank_ends_the_others_and_shows_its_output():
    start = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)rank 1 failed.*about to fail.*ValueError: as it should"):
        launch("tests.megatron.test_launch.fails_on_one", 2, hang=True)
    assert time.monotonic() - start < 60


def test_a_hang_is_killed_when_the_time_is_over(tmp_path):
    with pytest.raises(AssertionError, match="not finished after 10 s, killed"):
        launch("tests.megatron.test_launch.hangs", 2, time_limit=10, folder=str(tmp_path))
    started = [int(path.name) for path in tmp_path.iterdir()]
    assert len(started) == 2
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
