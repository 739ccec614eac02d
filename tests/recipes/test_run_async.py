"""A recipe runs in a script and in a notebook, whose event loop already runs."""

import asyncio

import pytest

from nemo_desta.recipes.run_async import run_async


async def double(value: int) -> int:
    await asyncio.sleep(0)
    if value < 0:
        raise ValueError("negative")
    return 2 * value


async def inside_a_loop(value: int) -> int:
    return run_async(double(value))


def test_the_result_is_the_same_with_and_without_a_running_loop():
    assert run_async(double(4)) == asyncio.run(inside_a_loop(4)) == 8


@pytest.mark.parametrize("run", [lambda: run_async(double(-1)), lambda: asyncio.run(inside_a_loop(-1))])
def test_an_error_reaches_the_caller(run):
    with pytest.raises(ValueError, match="negative"):
        run()
