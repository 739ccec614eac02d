"""LLMs whose outer config hides the text LLM's, with scaled embeddings or changed logits: the LLM itself is asked."""

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

from nemo_desta.config import LLMConfig
from nemo_desta.core.build import build_llm, embedding_rms
from nemo_desta.core.loss import decoder_of, has_plain_head
from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.data import tiny_tokenizer
from nemo_desta.testing.models import tiny_config, tiny_llm

CAP = 0.2


def tiny_gemma(kind: str, vocab_size: int, **text: Any) -> Any:
    """A two-layer Gemma 3, 3n or 4 as `AutoModelForCausalLM` gives it; Gemma 3 and 4 with an outer config."""
    if not hasattr(
        transformers, {"gemma3": "Gemma3Config", "gemma3n": "Gemma3nConfig", "gemma4": "Gemma4Config"}[kind]
    ):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "layer_types": ["full_attention"] * 2,
        **text,
    }
    torch.manual_seed(0)
    if kind == "gemma3n":  # its outer class needs timm
        shape |= {"intermediate_size": [64, 64], "activation_sparsity_pattern": [0.0, 0.0], "altup_num_inputs": 2}
        shape |= {"vocab_size_per_layer_input": vocab_size, "laurel_rank": 4, "num_kv_shared_layers": 0}
        return transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**shape)).eval()
    if kind == "gemma4":
        shape |= {"global_head_dim": 8, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": vocab_size}
        shape["layer_types"] = ["sliding_attention", "full_attention"]  # 5.5.0 needs both kinds
        shape = {"hidden_size_per_layer_input": 0, "final_logit_softcapping": CAP, **shape}
        tokens = {name: vocab_size - 1 for name in ("image_token_id", "audio_token_id", "video_token_id")}
        config = transformers.Gemma4Config(text_config=shape, vision_config=None, audio_config=None, **tokens)
        return transformers.Gemma4ForConditionalGeneration(config).eval()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config={**shape, "query_pre_attn_scalar": 8}, vision_config=vision, image_token_index=vocab_size - 1
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def desta_over(folder: Any, kind: str, **text: Any) -> DestaModel:
    tokenizer = tiny_tokenizer()
    config = tiny_config(folder)
    tiny_gemma(kind, len(tokenizer), **text).save_pretrained(folder / "gemma")
    tokenizer.save_pretrained(folder / "gemma")
    return DestaModel({**config, "llm": {"path": str(folder / "gemma")}}).eval()


@pytest.mark.parametrize("kind", ["gemma3", "gemma4"])
def test_loss_is_the_cross_entropy_of_the_llms_own_logits(tmp_path: Any, kind: str) -> None:
    model = desta_over(tmp_path, kind)
    row = {"messages": [{"role": "user", "content": "<|AUDIO|>\nWhat?", "audios": [{"audio": "a.wav"}]}]}
    example = model.prompts.example({**row, "id": "a", "response": "A bell rings."})
    batch = {
        "audio": 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)),
        "audio_lens": torch.tensor([16_000]),
        "input_ids": torch.tensor([example.ids]),
        "input_lens": torch.tensor([len(example.ids)]),
        "prompt_lens": torch.tensor([example.prompt_len]),
    }
    with torch.no_grad():
        loss, num_tokens, _ = model.loss(batch)
        logits = model.llm(inputs_embeds=model.embed(batch).inputs_embeds).logits[0, -num_tokens - 1 : -1]
    target = torch.tensor(example.ids[example.prompt_len :])
    expected = F.cross_entropy(logits.float(), target, reduction="sum").item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["gemma3", "gemma4"])
def test_audio_starts_at_the_level_that_the_llm_reads_text_at(tmp_path: Any, kind: str) -> None:
    llm = tiny_gemma(kind, 400)
    with torch.no_grad():
        read = llm.get_input_embeddings()(torch.arange(400)).float()
    assert embedding_rms(llm) == pytest.approx(read.pow(2).mean().sqrt().item(), rel=1e-5)
    assert embedding_rms(llm) > 5 * llm.get_input_embeddings().weight.float().pow(2).mean().sqrt().item()
    assert desta_over(tmp_path, kind).llm.config.get_text_config().hidden_size == 32


def test_the_head_is_plain_unless_the_llm_changes_its_logits_or_what_the_head_reads() -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    capped = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**shape, final_logit_softcapping=30.0, head_dim=8)
    )
    uncapped = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**shape, final_logit_softcapping=None, head_dim=8)
    )
    scaled = transformers.GraniteForCausalLM(transformers.GraniteConfig(**shape, logits_scaling=4.0))
    cohere = transformers.CohereForCausalLM(transformers.CohereConfig(**shape, logit_scale=0.5))
    found = [has_plain_head(llm) for llm in (plain, capped, uncapped, scaled, cohere)]
    assert found == [True, False, True, False, False]
    llm = tiny_gemma("gemma3", 100)
    assert has_plain_head(llm) and decoder_of(llm) is not llm


@pytest.mark.parametrize("kind", ["gemma3n", "gemma4"])
def test_an_llm_that_looks_ids_up_in_every_layer_is_refused(tmp_path: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match="hidden_size_per_layer_input=8.*audio vectors have no ids"):
        desta_over(tmp_path, kind, hidden_size_per_layer_input=8)


def test_mxfp4_weights_are_read_as_numbers_that_gradients_pass_through(tmp_path: Any, monkeypatch: Any) -> None:
    """As gpt-oss has them: two 4-bit numbers per byte, and a scale for every 32."""
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    config = transformers.GptOssConfig(**shape, layer_types=["full_attention"], pad_token_id=0)
    tensors = transformers.GptOssForCausalLM(config).bfloat16().state_dict()
    packed = {}
    for name, value in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, width, out = value.shape
            packed[f"{name}_blocks"] = torch.full((experts, out, width // 32, 16), 0x22, dtype=torch.uint8)  # 1.0, 1.0
            packed[f"{name}_scales"] = torch.full((experts, out, width // 32), 127 - 4, dtype=torch.uint8)  # 2 ** -4
        else:
            packed[name] = value.clone()
    save_file(packed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = {**config.to_dict(), "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "architectures": ["GptOssForCausalLM"]}))

    given = []
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: given.append(k) or load(*a, **k)
    )
    llm = build_llm(LLMConfig(path=str(tmp_path), dtype="bfloat16"))
    assert given[0]["quantization_config"].dequantize  # a GPU would otherwise keep them packed
    assert torch.equal(llm.model.layers[0].mlp.experts.down_proj, torch.full((2, 32, 32), 2.0**-4, dtype=llm.dtype))
    vectors = torch.randn(1, 4, 32, dtype=llm.dtype, requires_grad=True)
    llm(inputs_embeds=vectors).logits.sum().backward()
    assert vectors.grad.abs().sum() > 0

    build_llm(LLMConfig(path=str(tiny_llm(tmp_path / "plain"))))
    assert "quantization_config" not in given[1]


def test_a_layout_is_checked_on_the_text_llms_config() -> None:
    layout = pytest.importorskip("nemo_desta.megatron.layout")
    config = tiny_gemma("gemma3", 100).config
    assert layout.Layout().check(config, 2) == 2
    with pytest.raises(ConfigError, match="num_hidden_layers=2"):
        layout.Layout(pipeline_parallel_size=4).check(config, 4)


def test_the_probe_leaves_nothing_behind() -> None:
    llm = tiny_gemma("gemma3", 100)
    has_plain_head(llm)
    assert not decoder_of(llm)._forward_hooks and not llm.get_output_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in llm.parameters()) and math.isfinite(embedding_rms(llm))
