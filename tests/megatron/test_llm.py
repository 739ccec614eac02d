"""The LLM through megatron-core computes what Hugging Face's does, on every layout, and lets gradients through."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_desta.errors import ConfigError
from tests.megatron.launch import launch
from tests.megatron.llms import (
    GEMMA,
    KINDS,
    LLAMA3_ROPE,
    TWO_RANKS,
    groups,
    make_config,
    one_process,
    positions_of,
    probe,
    reference,
    run_cases,
    write_llm,
)

#: float32 sums in another order; logits are up to 5, gradients up to 400.
LOGITS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-5  # of the largest


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("llms")
    return {kind: str(write_llm(root / kind, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def references(folders):
    return {kind: reference(folder) for kind, folder in folders.items()}


@pytest.fixture
def alone():
    with one_process():
        yield


def assert_same(ranks, expected):
    """``ranks``: what each rank computed. Logits are joined over positions and vocabulary, gradients are whole."""
    logits, gradient = expected
    joined = torch.full_like(logits, torch.nan)
    for rank in ranks:
        if "logits" in rank:
            stop = rank["first_token"] + rank["logits"].shape[-1]
            joined[:, rank["positions"], rank["first_token"] : stop] = rank["logits"]
    assert (joined - logits).abs().max() < LOGITS_TOLERANCE
    gradients = [rank["gradient"] for rank in ranks if "gradient" in rank]
    assert gradients
    for found in gradients:
        assert (found - gradient).abs().max() < GRADIENT_TOLERANCE * gradient.abs().max()
    assert all(rank["trainable"] == 0 for rank in ranks)
    assert all(rank["surplus"] == 0 for rank in ranks), "the planner counts other parameters"
    assert all(rank.get("always_a_graph", True) for rank in ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_computes_what_hugging_face_does(alone, folders, references, kind):
    assert_same(run_cases([{"folder": folders[kind], "layout": {}}]), references[kind])


def test_of_a_model_with_a_vision_tower_the_text_part_is_read(alone, tmp_path):
    from transformers import AutoModelForCausalLM, Gemma3Config

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=make_config(KINDS["gemma3"][0], **KINDS["gemma3"][1]).to_dict(),
        vision_config={**tower, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    expected = reference(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)  # transformers 5.5.0 writes one more "model." than the hub's folders have
    save_file(
        {name.replace("model.language_model.model.", "language_model.model."): t for name, t in tensors.items()}, file
    )
    assert_same(run_cases([{"folder": tmp_path, "layout": {}}]), expected)


def test_a_validation_before_the_first_step_leaves_experts_trainable_through(alone, folders, monkeypatch):
    """Lightning validates in inference mode; megatron-core makes the scale of a mixture's loss in the first pass."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from nemo_desta.megatron.layout import Layout
    from nemo_desta.megatron.llm import build_llm
    from nemo_desta.megatron.step import run_losses

    monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", None)
    with groups():
        llm = build_llm(folders["qwen3_moe"], Layout(), dtype=torch.float32)
        llm.config.calculate_per_token_loss = True
        lens = {"input_lens": torch.tensor([6]), "prompt_lens": torch.tensor([3])}
        batch = {"input_ids": torch.arange(6)[None], "vector_lens": torch.zeros(0, dtype=torch.int64), **lens}
        start = torch.zeros(llm.hidden_size, requires_grad=True)

        def embed(batch):
            return llm.embed(batch["input_ids"]) + start

        with torch.inference_mode():
            validated = run_losses(llm, embed, [batch], train=False)
        trained = run_losses(llm, embed, [batch], train=True)
    assert torch.equal(validated[:, :2], trained[:, :2]) and start.grad.abs().max() > 0


@pytest.mark.parametrize("inference_first", [False, True])
def test_recomputation_runs_layers_twice_and_changes_nothing(alone, folders, references, inference_first):
    case = {"folder": folders["qwen3_tied"], "layout": {}, "inference_first": inference_first}
    plain, recomputed = run_cases([case, {**case, "recompute": True}])
    assert_same([plain], references["qwen3_tied"])
    assert_same([recomputed], references["qwen3_tied"])
    assert (plain["layer_calls"], recomputed["layer_calls"]) == (1, 2)


EVERY_KIND = ("TP2", "TP2+SP", "PP2", "TP2xPP2", "TP2xPP2+SP")
FOUR_RANKS = {
    "CP4": {"context_parallel_size": 4},
    "CP2xTP2": {"context_parallel_size": 2, "tensor_parallel_size": 2},
    "CP2xTP2+SP": {"context_parallel_size": 2, "tensor_parallel_size": 2, "sequence_parallel": True},
    "CP2xPP2": {"context_parallel_size": 2, "pipeline_parallel_size": 2},
    "TP4": {"tensor_parallel_size": 4},  # with two key-value heads or one: copies
    "TP4+SP": {"tensor_parallel_size": 4, "sequence_parallel": True},
    "TP2xPP2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "TP2xPP2+SP": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "sequence_parallel": True},
}


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "layouts"), [(2, TWO_RANKS), (4, FOUR_RANKS)])
def test_several_ranks_compute_what_hugging_face_does(folders, references, num_ranks, layouts):
    names, cases = [], []
    for name, layout in layouts.items():
        for kind in KINDS if name in EVERY_KIND else ("llama_scaled_tied", "qwen2_one_key"):
            names.append((kind, name))
            cases.append({"folder": folders[kind], "layout": layout})
        # again after a pass in inference mode, recomputing: what megatron-core keeps must still serve a backward pass
        names.append(names[-1])
        cases.append({**cases[-1], "inference_first": True, "recompute": True})
    by_rank = launch("tests.megatron.llms.run_cases", num_ranks, cases=cases)
    for index, (kind, name) in enumerate(names):
        ranks = [results[index] for results in by_rank]
        try:
            assert_same(ranks, references[kind])
        except AssertionError as error:
            raise AssertionError(f"{kind} on {name}: {error}") from error


SHARED_EXPERTS = [
    (2, {"expert_parallel_size": 2}),
    (2, {"expert_parallel_size": 2, "tensor_parallel_size": 2}),
    (2, {"expert_parallel_size": 2, "context_parallel_size": 2}),
    (2, {"expert_parallel_size": 2, "tensor_parallel_size": 2, "sequence_parallel": True}),
    (4, {"expert_parallel_size": 2, "pipeline_parallel_size": 2}),
    (4, {"expert_parallel_size": 4, "tensor_parallel_size": 2, "sequence_parallel": True}),
    (4, {"expert_parallel_size": 2, "tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
]


def check_shared_experts(folders, num_ranks, kinds, layouts):
    """Data-parallel ranks have rows of different lengths."""
    names = [(kind, layout) for layout in layouts for kind in kinds]
    cases = [{"folder": folders[kind], "layout": layout} for kind, layout in names]
    cases.append({**cases[-1], "recompute": True})
    by_rank = launch("tests.megatron.llms.run_cases", num_ranks, cases=cases)
    for (kind, layout), *ranks in zip([*names, names[-1]], *by_rank, strict=True):
        assert_same_rows(ranks, folders[kind], f"{kind} on {layout}")


def assert_same_rows(ranks, folder, what):
    for data_rank in {rank["data_rank"] for rank in ranks}:
        expected = reference(folder, upto=positions_of(data_rank))
        try:
            assert_same([rank for rank in ranks if rank["data_rank"] == data_rank], expected)
        except AssertionError as error:
            raise AssertionError(f"{what}, data-parallel rank {data_rank}: {error}") from error


def test_two_ranks_with_a_share_of_experts_key_value_heads_or_positions_compute_what_hugging_face_does(folders):
    """The quick cases of the slow tests, in one start of two processes."""
    layouts = {
        "qwen3_moe": SHARED_EXPERTS[0][1],
        "qwen2_one_key": TWO_RANKS["TP2+SP"],
        "qwen3_tied": TWO_RANKS["CP2"],
    }
    cases = [{"folder": folders[kind], "layout": layout} for kind, layout in layouts.items()]
    by_rank = launch("tests.megatron.llms.run_cases", 2, cases=cases)
    for (kind, layout), *ranks in zip(layouts.items(), *by_rank, strict=True):
        assert_same_rows(ranks, folders[kind], f"{kind} on {layout}")


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_that_share_experts_compute_what_hugging_face_does(folders, num_ranks):
    layouts = [layout for ranks, layout in SHARED_EXPERTS if ranks == num_ranks]
    check_shared_experts(folders, num_ranks, ["qwen3_moe", "qwen3_moe_shares", "mixtral"], layouts)


@pytest.mark.parametrize("kind", ["qwen3_tied", "qwen3_moe", "gemma3"])
def test_bfloat16_is_as_close_to_hugging_face_as_bfloat16_allows(alone, tmp_path, kind):
    from nemo_desta.megatron.layout import Layout
    from nemo_desta.megatron.llm import build_llm

    folder = write_llm(tmp_path, kind, dtype=torch.bfloat16)
    exact, _ = reference(folder)
    rounded, _ = reference(folder, dtype=torch.bfloat16)
    with groups(), torch.no_grad():
        llm = build_llm(folder, Layout(), dtype=torch.bfloat16)
        ids, _ = probe(llm.hf_config.vocab_size)
        logits = llm.head(llm(llm.embed(ids))).transpose(0, 1)[..., : exact.shape[-1]]
    assert logits.dtype == torch.bfloat16
    # rounding alone moves Hugging Face's own bfloat16 logits by as much
    assert (logits.float() - exact).pow(2).mean().sqrt() < 1.5 * (rounded.float() - exact).pow(2).mean().sqrt()


def test_rotary_frequencies_are_those_of_hugging_face():
    from nemo_desta.megatron.mcore_config import rotary_frequencies

    plain = make_config("llama", rope_theta=500000.0)
    scaled = make_config("llama", rope_theta=500000.0, rope_scaling=LLAMA3_ROPE)
    base = 500000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(rotary_frequencies(plain), base)
    assert rotary_frequencies(scaled)[0] == base[0]  # short waves stay
    torch.testing.assert_close(rotary_frequencies(scaled)[-1], base[-1] / 8)  # long ones are stretched


@pytest.mark.parametrize(
    ("model_type", "changes", "named"),
    [
        ("gemma2", {}, "gemma2.*soft caps"),
        ("qwen3_next", {}, "gated delta nets"),
        (
            "gemma3_text",
            {"layer_types": ["sliding_attention"] * 2},
            "full_attention, sliding_attention of 'gemma3_text'",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "soft caps.*attn_logit_softcapping"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "changed after the head"),
        ("gemma3_text", {**GEMMA, "num_hidden_layers": 5, "hidden_activation": "gelu"}, "found 'gelu'"),
        ("gpt_oss", {}, "gpt_oss.*sinks.*MXFP4"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"experts in every layer, found mlp_only_layers=\[1\]"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok=1"),
        ("mixtral", {"sliding_window": 16}, "sliding"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=silu, gelu_pytorch_tanh, found 'gelu'"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "sliding"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope types .* found 'yarn'"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "found 'dynamic'"),
        ("llama", {"logit_scale": 0.5}, "changed after the head, found .*logit_scale.*0.5"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(model_type, changes, named):
    from nemo_desta.megatron.mcore_config import check_covered

    with pytest.raises(ConfigError, match=named):
        check_covered(make_config(model_type, **changes))


def test_a_broken_transformer_engine_is_an_error_and_not_a_reason_for_other_layers(tmp_path, monkeypatch):
    from nemo_desta.megatron.mcore_config import has_transformer_engine

    package = tmp_path / "transformer_engine"
    (package / "pytorch").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "pytorch" / "__init__.py").write_text("raise ImportError('libcudnn.so.9: cannot open shared object')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="libcudnn"):
        has_transformer_engine()
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        sys.modules.pop(name, None)
