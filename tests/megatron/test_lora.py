"""LoRA on a split LLM is the plain model's: the same weights at the start, steps, checkpoints and folders."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_desta.config import LoraConfig
from nemo_desta.core.build import add_lora
from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.sharing.export import export_model
from tests.megatron.fixed_batches import NUM_STEPS, global_batch
from tests.megatron.launch import launch
from tests.megatron.llms import groups, one_process, probe, write_llm
from tests.megatron.workplace import TIME_LIMIT

RUN = "tests.megatron.fixed_run.run"
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TP2_SP = {"tensor_parallel_size": 2, "sequence_parallel": True}
#: name -> (sizes, how a global batch is cut, processes)
LAYOUTS = {
    "tp2": ({"tensor_parallel_size": 2}, "accumulate", 2),
    "tp2_sp": (TP2_SP, "whole", 2),
    "pp2": ({"pipeline_parallel_size": 2}, "whole", 2),
    "cp2": ({"context_parallel_size": 2}, "whole", 2),
    "tp2_pp2_sp": ({**TP2_SP, "pipeline_parallel_size": 2}, "whole", 4),
}


@pytest.mark.parametrize("fused_norm", [False, True])
def test_one_rank_computes_what_peft_does(tmp_path, fused_norm):
    """Initial weights, logits and the gradient of every weight; only some layers of a fused one have LoRA.

    ``fused_norm``: linear layers normalise their input themselves, as TransformerEngine's do.
    """
    from nemo_desta.megatron.layout import Layout
    from nemo_desta.megatron.llm import build_llm
    from nemo_desta.megatron.lora import SplitLora

    settings = LoraConfig(r=3, alpha=6, dropout=0.0, target_modules=["v_proj", "up_proj", "q_proj", "down_proj"])
    folder = write_llm(tmp_path, "qwen3")
    llm = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    ids, direction = probe(llm.config.vocab_size)
    with one_process(), groups():
        split = build_llm(folder, Layout(), dtype=torch.float32)
        if fused_norm:
            for layer in split.gpt.decoder.layers:
                layer.input_layernorm = fuse(layer.input_layernorm, layer.self_attention.linear_qkv)
                layer.pre_mlp_layernorm = fuse(layer.pre_mlp_layernorm, layer.mlp.linear_fc1)
        torch.manual_seed(1)
        SplitLora(split, settings, dropout=0.0)
        torch.manual_seed(1)
        plain = add_lora(llm, settings)
        expected = {name: p for name, p in plain.named_parameters() if p.requires_grad}
        found = {name: p for name, p in split.named_parameters() if p.requires_grad}
        assert list(found) == list(expected)
        for name, parameter in expected.items():
            assert torch.equal(found[name], parameter), name
            with torch.no_grad():  # B is zero, so that A would have no gradient
                found[name].copy_(parameter.normal_(std=0.3))
        logits = split.head(split(split.embed(ids))).transpose(0, 1)[..., : llm.config.vocab_size]
        (logits * direction).sum().backward()
    expected_logits = plain(ids).logits
    (expected_logits * direction).sum().backward()
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-4)
    for name, parameter in expected.items():
        largest = parameter.grad.abs().max()
        assert largest > 0 and (found[name].grad - parameter.grad).abs().max() < 1e-5 * largest, name


def fuse(norm, linear):
    """Move a norm into the linear layer after it; returns what takes its place."""
    linear.layer_norm_weight, linear.eps, linear.zero_centered_gamma = norm.weight, norm.eps, False
    plain = linear.forward
    linear.forward = lambda x: plain(norm(x))
    return torch.nn.Identity()


def test_a_target_inside_experts_is_refused_by_name(tmp_path, monkeypatch):
    from nemo_desta.megatron import lora

    names = {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.experts.3.up_proj.weight"}
    monkeypatch.setattr(lora, "part_names", lambda config: names)
    assert lora.adapted_layers(None, LoraConfig(target_modules=["q_proj"])) == ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(ConfigError, match="up_proj of this LLM are inside the experts"):
        lora.adapted_layers(None, LoraConfig(target_modules=["q_proj", "up_proj"]))


@pytest.mark.parametrize(
    ("targets", "named"),
    [(["q_proj", "lm_head"], "q_proj, .* found lm_head"), (["x_proj"], "found x_proj")],
)
def test_a_target_that_is_not_covered_is_refused_by_name(tmp_path, targets, named):
    from nemo_desta.megatron.lora import adapted_layers

    config = AutoConfig.from_pretrained(write_llm(tmp_path, "qwen3"))
    with pytest.raises(ConfigError, match=named):
        adapted_layers(config, LoraConfig(target_modules=targets))


@pytest.fixture(scope="module")
def model(fixed):
    lora = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": EVERYWHERE}
    return {**fixed, "llm": {**fixed["llm"], "lora": lora}}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def run(model, name, checkpoints, **more):
    """Train under a layout, or the plain model; what each rank saw."""
    sizes, split, num_processes = {"one": ({}, "accumulate", 1), "plain": (None, "whole", 1), **LAYOUTS}[name]
    strategy = {"name": "auto"} if sizes is None else {"name": "megatron", **sizes}
    more = {"checkpoint": str(checkpoints / f"{name}.ckpt"), "validate": True, "time_limit": TIME_LIMIT, **more}
    return launch(
        RUN,
        num_processes,
        init_group=False,
        model=model,
        strategy=strategy,
        split=split,
        num_processes=num_processes,
        **more,
    )


@pytest.fixture(scope="module")
def plain(model, checkpoints):
    return run(model, "plain", checkpoints)[0]


def assert_trained_alike(ranks, plain, *, first=0):
    for rank in ranks:
        assert rank["losses"] == pytest.approx(plain["losses"][first:], rel=1e-5)
    joined = {name: tensor for rank in ranks for name, tensor in rank["weights"].items()}
    assert set(joined) == set(plain["weights"])
    for rank in ranks:  # every copy made the same steps
        for name, tensor in rank["weights"].items():
            torch.testing.assert_close(tensor, plain["weights"][name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_twenty_steps_are_those_of_peft(model, plain, checkpoints, tmp_path, name):
    ranks = run(model, name, checkpoints, save_to=str(tmp_path / "model"))
    assert len(plain["losses"]) == NUM_STEPS
    assert not {name for name, largest in plain["largest_gradient"].items() if largest == 0}
    assert_trained_alike(ranks, plain)
    for rank in ranks:
        assert rank["validation"] == pytest.approx(plain["validation"], rel=1e-5)
    opened = DestaModel.from_pretrained(tmp_path / "model", device="cpu")
    with torch.no_grad():
        found = [opened.loss(batch)[:2] for step in range(4) for batch in global_batch(opened.prompts, step, "whole")]
    loss = sum(float(loss) for loss, _ in found) / sum(count for _, count in found)
    assert loss == pytest.approx(plain["validation"]["val_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("plain", "pp2"), ("pp2", "tp2_sp"), ("tp2_pp2_sp", "plain")])
def test_another_layout_resumes_with_lora_and_its_moments(model, plain, checkpoints, before, after):
    """Both cut a batch alike, since the fixed batches are counted on."""
    path = checkpoints / f"{before}.ckpt"
    if not path.exists():
        run(model, before, checkpoints)
    ranks = run(model, after, checkpoints, resume=str(path), checkpoint=None)
    assert_trained_alike(ranks, plain, first=NUM_STEPS // 2)


@pytest.mark.slow
def test_dropout_is_the_same_on_ranks_that_have_the_same_input(model, checkpoints):
    """The masks of column-parallel layers do not depend on TP, so the steps do not; without dropout they differ."""
    lora = {**model["llm"]["lora"], "target_modules": ["q_proj", "up_proj"], "dropout": 0.5}
    model = {**model, "llm": {**model["llm"], "lora": lora}}
    more = {"num_steps": 4, "checkpoint": None, "validate": False}
    one, two = (run(model, name, checkpoints, **more)[0]["losses"] for name in ("one", "tp2"))
    assert one == pytest.approx(two, rel=1e-5)
    lora["dropout"] = 0.0
    assert one[1:] != pytest.approx(run(model, "one", checkpoints, **more)[0]["losses"][1:], rel=1e-4)


@pytest.mark.slow
def test_the_command_and_an_export_give_the_plain_models_peft_folder(workplace, tmp_path):
    """From the seed alone; the split run is cut in two by its last checkpoint."""
    lora = "{r: 4, dropout: 0.0, target_modules: [q_proj, o_proj, up_proj, down_proj]}"
    common = {"model.llm.lora": lora, "exp_manager.checkpoint_callback_params.every_n_train_steps": 3}
    pp2 = {"strategy": "megatron", "strategy.pipeline_parallel_size": 2, "trainer.devices": 2}
    plain = {"strategy": "auto", "trainer.devices": 1, "trainer.max_steps": 6}
    schedule = {"model.lr_scheduler.max_steps": 6, "+model.optimizer.eps": 1e-6}  # see `parts_config`
    workplace.finish("lora_split", **common, **schedule, **pp2, **{"trainer.max_steps": 3})
    workplace.finish("lora_split", **common, **schedule, **pp2, **{"trainer.max_steps": 6})
    workplace.finish("lora_plain", **common, **schedule, **plain)
    folders = []
    for name in ("lora_split", "lora_plain"):
        run = workplace.folder / name / "desta25"
        folders.append(export_model(run / "model", tmp_path / name) / "lora")
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    assert configs[0] == configs[1]
    assert list(tensors[0]) == list(tensors[1])
    for name, tensor in tensors[1].items():
        torch.testing.assert_close(tensors[0][name], tensor, rtol=0, atol=1e-4, msg=name)
        assert tensor.abs().max() > 0
