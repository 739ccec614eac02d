"""FLOPs against torch's own count, and the arithmetic of time."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_desta.config import LoraConfig
from nemo_desta.core import build
from nemo_desta.core.cost import GPUS, Flops, Speed, attention_flops, find_gpu, llm_flops, position_flops
from nemo_desta.errors import ConfigError

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROWS, LENGTH, TARGETS = 2, 21, 17
TRANSFORMERS_5 = int(transformers.__version__.partition(".")[0]) >= 5


def step(llm):
    """A step with frozen embeddings that need a gradient, and the head at the targets."""
    embeds = torch.randn(ROWS, LENGTH, SIZES["hidden_size"], requires_grad=True)
    hidden = llm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    llm.lm_head(hidden.flatten(0, 1)[:TARGETS]).sum().backward()


@pytest.mark.parametrize(
    ("model_type", "changes", "lora"),
    [
        ("llama", {}, None),
        ("qwen3", {}, 4),
        ("qwen2", {"tie_word_embeddings": True}, None),
        ("qwen3_moe", EXPERTS, None),
    ],
)
def test_the_flops_of_a_step_are_those_that_torch_counts(model_type, changes, lora):
    config = AutoConfig.for_model(model_type, **SIZES, **changes)
    plain = {"experts_implementation": "eager"} if changes is EXPERTS and TRANSFORMERS_5 else {}
    llm = AutoModelForCausalLM.from_config(config, attn_implementation="eager", **plain).requires_grad_(False)
    names = [(name, p.shape) for name, p in llm.named_parameters()]
    if lora:
        llm = build.add_lora(llm, LoraConfig(r=lora, target_modules=["q_proj", "v_proj"]))
    trained = sum(parameter.numel() for name, parameter in llm.named_parameters() if ".lora_" in name)
    found = llm_flops(config, position_flops(names, config), rows=ROWS, length=LENGTH, targets=TARGETS, lora=trained)
    with FlopCounterMode(display=False) as counter:
        step(llm)
    # plain attention computes the scores above the diagonal, too: twice as many
    above = 3 * ROWS * attention_flops(config, LENGTH)
    angles = config.head_dim * LENGTH  # some versions of transformers make rotary angles by a matrix product
    assert counter.get_total_flops() - found.total - above in (0, angles)


def test_recomputation_runs_the_layers_once_more():
    config = AutoConfig.for_model("llama", **SIZES)
    sizes = {"rows": 1, "length": 8, "targets": 4}
    once, again = (llm_flops(config, 1000.0, recompute=recompute, **sizes) for recompute in (False, True))
    assert again.layers - once.layers == 8 * 1000.0 + attention_flops(config, 8)
    assert again.head == once.head


def test_a_sliding_window_bounds_the_pairs_of_positions():
    config = AutoConfig.for_model("gemma2", **SIZES, sliding_window=4, layer_types=["sliding_attention"] * 3)
    pairs = sum(min(position + 1, 4) for position in range(100))
    assert attention_flops(config, 100) == pytest.approx(3 * 4 * 4 * 16 * pairs, rel=0.01)


def test_the_slowest_stage_sets_the_pace_and_all_wait_at_the_ends():
    flops = Flops(layers=300.0, head=10.0, encoders=40.0, projector=5.0)
    assert flops.by_stage([1, 2]) == [145.0, 210.0]
    speed = Speed("h100", 0.5)
    assert speed.secs(989e12) == 2.0
    assert speed.step_secs([989e12, 2 * 989e12], num_micro_batches=3, gpus_per_stage=2) == pytest.approx(4 * 2.0)
    assert str(Flops(3e15, 1e15, 1e15, 0)) == "5.0 PFLOP (LLM 80.0%, encoders 20.0%, projector 0.0%)"


def test_gpus_are_recognised_by_what_torch_calls_them():
    reported = {
        "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
        "NVIDIA B200": "b200",
        "Tesla V100-SXM2-16GB": None,
    }
    assert {name: find_gpu(name) for name in reported} == reported
    assert {name for name in reported.values() if name} == set(GPUS)


@pytest.mark.parametrize(("settings", "named"), [(("h10", 0.3), "Did you mean 'h100'"), (("h100", 35), "found 35")])
def test_an_impossible_speed_is_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        Speed(*settings)
