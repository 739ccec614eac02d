"""Layouts that cannot work are refused with their numbers before any weight is read."""

import pytest
import torch

from nemo_desta.errors import ConfigError
from nemo_desta.megatron.layout import Layout
from tests.megatron.llms import make_config, one_process

CONFIG = make_config("llama", num_attention_heads=8, num_key_value_heads=4, intermediate_size=48, num_hidden_layers=3)
EXPERTS = make_config("qwen3_moe", intermediate_size=51, moe_intermediate_size=25, num_experts=6)


@pytest.mark.parametrize(
    ("sizes", "world_size", "named"),
    [
        ({"tensor_parallel_size": 3}, 3, r"tensor_parallel_size=3 .* num_attention_heads=8.* 1, 2, 4, 8"),
        ({"tensor_parallel_size": 0}, 1, "tensor_parallel_size must be at least 1, found 0"),
        ({"pipeline_parallel_size": 4}, 4, "pipeline_parallel_size=4 .* num_hidden_layers=3"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 8, "8 processes .* 2 x 1 x 3 = 6"),
        ({"tensor_parallel_size": 4}, 2, "2 processes .* 4 x 1 x 1 = 4"),
        ({"sequence_parallel": True}, 1, "sequence_parallel=true with .*tensor_parallel_size=1"),
        ({"context_parallel_size": 2, "tensor_parallel_size": 2}, 6, "6 processes .* 2 x 2 x 1 = 4"),
        ({"context_parallel_size": 0}, 1, "context_parallel_size must be at least 1, found 0"),
        ({"expert_parallel_size": 2}, 2, "expert_parallel_size=2: an LLM of type 'llama' has no experts"),
        ({"expert_parallel_size": 0}, 1, "expert_parallel_size must be at least 1, found 0"),
    ],
)
def test_a_layout_that_cannot_work_is_refused_with_its_numbers(sizes, world_size, named):
    with pytest.raises(ConfigError, match=named):
        Layout(**sizes).check(CONFIG, world_size)


def test_key_value_heads_are_shared_out_or_copied():
    config = make_config("llama", hidden_size=48, num_attention_heads=12, num_key_value_heads=4)
    for size in (2, 4, 12):
        Layout(tensor_parallel_size=size).check(config, size)
    with pytest.raises(ConfigError, match="size=6 neither divides .* num_key_value_heads=4.*: 1, 2, 4, 12"):
        Layout(tensor_parallel_size=6).check(config, 6)


def test_an_mlp_that_does_not_divide_is_named():
    config = make_config("llama", intermediate_size=50)
    with pytest.raises(ConfigError, match="intermediate_size=50"):
        Layout(tensor_parallel_size=4).check(config, 4)
    with pytest.raises(ConfigError, match="tensor_parallel_size=2 .* intermediate_size=51"):
        Layout(tensor_parallel_size=2).check(make_config("llama", intermediate_size=51), 2)


@pytest.mark.parametrize(
    ("sizes", "world_size", "named"),
    [
        ({"expert_parallel_size": 4}, 4, "expert_parallel_size=4 does not divide the LLM's 6 experts"),
        ({"expert_parallel_size": 3}, 4, "expert_parallel_size=3 does not divide the 4 processes of a pipeline stage"),
        ({"expert_parallel_size": 2, "pipeline_parallel_size": 2}, 2, "does not divide the 1 processes"),
    ],
)
def test_experts_that_cannot_be_spread_are_refused_with_their_numbers(sizes, world_size, named):
    with pytest.raises(ConfigError, match=named):
        Layout(**sizes).check(EXPERTS, world_size)


def test_experts_are_whole_so_their_width_need_not_divide():
    layout = Layout(tensor_parallel_size=2, expert_parallel_size=3)
    assert layout.check(EXPERTS, 6) == 3
    assert layout.experts_per_rank(EXPERTS) == 2


def test_what_the_layout_leaves_over_is_data_parallel():
    assert Layout(tensor_parallel_size=2, pipeline_parallel_size=3).check(CONFIG, 24) == 4
    assert Layout(tensor_parallel_size=2, context_parallel_size=3).check(CONFIG, 24) == 4


def test_lengths_are_padded_to_equal_shares():
    assert Layout(context_parallel_size=3).padded_length(13) == 18  # six chunks
    assert Layout(2, context_parallel_size=2, sequence_parallel=True).padded_length(17) == 24
    assert Layout(2, context_parallel_size=2).padded_length(17) == 20
    assert Layout(2, sequence_parallel=True).padded_length(17) == 18


def test_context_parallelism_refuses_windows_of_attention():
    config = make_config("qwen3", layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(ConfigError, match="context_parallel_size=2 covers full .* has sliding_attention"):
        Layout(context_parallel_size=2).check(config, 2)


def test_layers_that_do_not_divide_go_to_later_stages():
    assert Layout(pipeline_parallel_size=4).layers_per_stage(10) == [2, 3, 3, 2]
    assert Layout(pipeline_parallel_size=2).layers_per_stage(3) == [1, 2]


@pytest.mark.parametrize(("num_layers", "stages"), [(3, 2), (10, 4), (5, 3)])
def test_megatron_builds_the_layers_that_the_layout_says(num_layers, stages):
    from nemo_desta.megatron.mcore_config import transformer_config

    layout = Layout(pipeline_parallel_size=stages)
    config = transformer_config(make_config("llama", num_hidden_layers=num_layers), layout, dtype=torch.float32)
    splits = config.pipeline_model_parallel_layout
    counts = [splits.get_num_layers_to_build(pp_rank=stage) for stage in range(stages)]
    assert counts == layout.layers_per_stage(num_layers)
    assert sum(counts) == num_layers and min(counts) >= 1


def test_a_wrong_layout_fails_before_any_weight_is_read(tmp_path):
    """The folder has a config and no weights: whoever reads weights first says so instead."""
    from nemo_desta.megatron.llm import build_llm
    from tests.megatron.llms import groups

    CONFIG.save_pretrained(tmp_path)
    with one_process(), groups():
        with pytest.raises(ConfigError, match="tensor_parallel_size=3"):
            build_llm(tmp_path, Layout(tensor_parallel_size=3), dtype=torch.float32)
        with pytest.raises(ConfigError, match="1 processes"):
            build_llm(tmp_path, Layout(tensor_parallel_size=2), dtype=torch.float32)
        with pytest.raises(ConfigError, match="no model.safetensors"):
            build_llm(tmp_path, Layout(), dtype=torch.float32)
