"""Other LLMs and switches against the plain model over a few steps: untied Llama, recomputation, bfloat16."""

import math

import pytest
import torch

from tests.megatron.fixed_batches import NUM_STEPS, parts_config
from tests.megatron.launch import launch
from tests.megatron.workplace import TIME_LIMIT

pytestmark = pytest.mark.slow

SPLIT = {
    "name": "megatron",
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "sequence_parallel": True,
}


def both(model, num_steps=4, strategy=SPLIT, num_processes=4, **more):
    """What the plain model and the split one make of the first steps."""
    common = {"model": model, "num_steps": num_steps, "validate": True, "time_limit": TIME_LIMIT, **more}
    run = "tests.megatron.fixed_run.run"
    plain = launch(run, 1, init_group=False, strategy={"name": "auto"}, split="whole", num_processes=1, **common)[0]
    more = {"strategy": strategy, "split": "accumulate", "num_processes": num_processes}
    split = launch(run, num_processes, init_group=False, **more, **common)[0]
    return plain, split


def assert_weights(found, expected, atol):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=atol, msg=name)


def test_an_untied_llama_with_recomputed_activations(tmp_path):
    torch.manual_seed(5)
    plain, split = both(parts_config(tmp_path, kind="llama", activation_checkpointing=True))
    assert split["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert split["validation"] == pytest.approx(plain["validation"], rel=1e-5)
    assert_weights(split["weights"], plain["weights"], atol=1e-4)


def test_a_single_key_value_head_that_every_rank_copies(tmp_path):
    torch.manual_seed(5)
    strategy = {"name": "megatron", "tensor_parallel_size": 2, "sequence_parallel": True}
    model = parts_config(tmp_path, llm={"num_key_value_heads": 1})
    plain, split = both(model, NUM_STEPS, strategy, 2)
    assert split["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert split["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    assert split["validation"] == pytest.approx(plain["validation"], rel=1e-5)
    assert_weights(split["weights"], plain["weights"], atol=1e-4)


def test_bfloat16_parts_train_a_float32_projector(tmp_path):
    """As on a GPU. bfloat16 has 8 bits: sums in another order differ by some thousandths, and so do Adam's steps."""
    torch.manual_seed(5)
    model = parts_config(tmp_path)
    model["llm"]["dtype"] = model["perception"]["dtype"] = "bfloat16"
    plain, split = both(model)
    assert split["losses"] == pytest.approx(plain["losses"], rel=5e-3)
    assert split["norms"] == pytest.approx(plain["norms"], rel=0.1)
    assert_weights(split["weights"], plain["weights"], atol=2 * 4 * 3e-3)  # both ways, four steps of the learning rate


def test_a_step_that_is_not_finite_is_skipped_by_every_rank(fixed):
    plain, split = both(fixed, 3, {"name": "megatron", "pipeline_parallel_size": 2}, 2, poisoned_step=1)
    assert math.isnan(split["losses"][1]) and math.isnan(plain["losses"][1])
    assert split["losses"][::2] == pytest.approx(plain["losses"][::2], rel=1e-5)
    assert len(split["norms"]) == len(plain["norms"]) == 2
    assert_weights(split["weights"], plain["weights"], atol=1e-4)
