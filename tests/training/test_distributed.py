"""Two gloo processes: DDP and FSDP2 learn what one process learns from the same batches, and resume."""

import pytest
import torch
from safetensors.torch import load_file

from nemo_desta.errors import ConfigError
from nemo_desta.training.strategies import build_strategy

TWO = {
    "trainer.devices": 2,
    "data.train_ds.shuffle": "false",
    "trainer.max_steps": 6,
    "model.lr_scheduler.max_steps": 6,
}


def trained(workplace, run):
    return load_file(workplace.folder / run / "desta25" / "model" / "projector.safetensors")


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def one_process(workplace):
    """Two micro-batches per step: what two ranks see in one."""
    more = {**TWO, "trainer.devices": 1, "trainer.accumulate_grad_batches": 2}
    done = workplace.train("one", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return trained(workplace, "one")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_learn_what_one_process_learns(workplace, one_process, strategy):
    done = workplace.train(strategy, strategy=strategy, **TWO)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert_equal(trained(workplace, strategy), one_process)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_resume_to_the_same_weights(workplace, one_process, strategy):
    run = f"{strategy}_resumed"
    for max_steps in (3, 6):
        done = workplace.train(run, strategy=strategy, **{**TWO, "trainer.max_steps": max_steps})
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert_equal(trained(workplace, run), one_process)


def test_tensor_parallelism_is_refused_with_a_pointer():
    with pytest.raises(ConfigError, match="strategy=megatron"):
        build_strategy({"name": "fsdp2", "tensor_parallel_size": 2})


def test_an_unknown_strategy_knob_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'process_group_backend'"):
        build_strategy({"name": "ddp", "process_group_backand": "gloo"})
