"""Weights: nothing is left over on either side, the way back is exact, and a rank needs little more than its share."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_desta.errors import ConfigError
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.param_mapping import find_home, part_names, part_shape
from tests.megatron.launch import launch
from tests.megatron.llms import KINDS, groups, make_config, one_process, reference, sizes_of, write_llm


@pytest.fixture
def alone():
    with one_process(), groups():
        yield


def build(folder):
    from nemo_desta.megatron.llm import build_llm

    return build_llm(folder, Layout(), dtype=torch.float32)


def rewrite(folder, change):
    """Let ``change`` edit the tensors of a one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_all(folder):
    """Every tensor of a Hugging Face folder by name."""
    index = json.loads((Path(folder) / "model.safetensors.index.json").read_text())
    files = {file: load_file(Path(folder) / file) for file in set(index["weight_map"].values())}
    assert {name for tensors in files.values() for name in tensors} == set(index["weight_map"])
    return {name: files[file][name] for name, file in index["weight_map"].items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_lists_exactly_the_tensors_of_the_hugging_face_model(tmp_path, kind):
    folder = write_llm(tmp_path, kind)
    config = make_config(KINDS[kind][0], **KINDS[kind][1])
    tensors = load_file(folder / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: part_shape(name, config) for name in part_names(config)
    }


@pytest.mark.parametrize("kind", ["llama", "qwen2_tied", "qwen3", "qwen3_moe"])
def test_names_of_transformer_engine_layers_lead_to_the_same_tensors(alone, tmp_path, kind):
    """megatron-core says itself, in its local layers' specification, what TransformerEngine layers call each norm.

    Everything else has one name with both. Shapes are those of the real modules.
    """
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    renamed = get_gpt_layer_local_spec(normalization="RMSNorm").submodules.sharded_state_dict_keys_map
    llm = build(write_llm(tmp_path, kind))
    where = {"layer_offset": 0, "padded_vocab_size": llm.gpt.vocab_size, "rank": 0, "size": 1}
    fused = 0
    for name, parameter in llm.gpt.named_parameters():
        home = find_home(name, llm.hf_config, **where)
        assert home.shape == tuple(parameter.shape), name
        for local, engine in renamed.items():
            if f".{local}" in name and not (kind == "qwen3_moe" and local.startswith("pre_mlp")):
                fused += 1
                assert find_home(name.replace(local, engine), llm.hf_config, **where) == home
    assert fused == (1 if kind == "qwen3_moe" else 2) * llm.hf_config.num_hidden_layers


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_a_grouped_layer_of_transformer_engine_numbers_the_experts_of_its_rank(kind):
    """TransformerEngine's GroupedLinear keeps expert n of the rank as ``weight<n>``."""
    config = make_config(KINDS[kind][0], **KINDS[kind][1])
    where = {"layer_offset": 2, "padded_vocab_size": 256, "rank": 1, "size": 2, "expert_offset": 2}
    for number, linear in ((1, "linear_fc1"), (0, "linear_fc2")):
        home = find_home(f"decoder.layers.0.mlp.experts.{linear}.weight{number}", config, **where)
        assert home == find_home(
            f"decoder.layers.0.mlp.experts.local_experts.{number}.{linear}.weight", config, **where
        )
        assert {piece.part.partition(".weight")[0].rpartition(".")[0] for piece in home.pieces} == {
            f"model.layers.2.{'mlp' if kind == 'qwen3_moe' else 'block_sparse_moe'}.experts.{number + 2}"
        }


def test_a_rank_of_eight_holds_an_eighth_in_the_order_megatron_expects():
    """By hand for 8 groups of 2 query heads of size 4, rank 3 of 4: groups 6 and 7."""
    config = make_config("qwen2", hidden_size=64, num_attention_heads=16, num_key_value_heads=8, num_hidden_layers=1)
    where = {"layer_offset": 0, "padded_vocab_size": 512, "rank": 3, "size": 4}
    qkv = find_home("decoder.layers.0.self_attention.linear_qkv.weight", config, **where)
    order = [(piece.part.split(".")[4], piece.source[0].start, piece.target[0].start) for piece in qkv.pieces]
    assert order == [
        ("q_proj", 48, 0),
        ("k_proj", 24, 8),
        ("v_proj", 24, 12),
        ("q_proj", 56, 16),
        ("k_proj", 28, 24),
        ("v_proj", 28, 28),
    ]
    assert qkv.shape == (32, 64)
    fc1 = find_home("decoder.layers.0.mlp.linear_fc1.weight", config, **where)
    assert [(piece.source[0].start, piece.target[0].start) for piece in fc1.pieces] == [(36, 0), (36, 12)]
    fc2 = find_home("decoder.layers.0.mlp.linear_fc2.weight", config, **where)
    assert fc2.pieces[0].source[1] == slice(36, 48)
    assert find_home("embedding.word_embeddings.weight", config, **where).pieces == ()  # 384..511 of 200: padding


def test_ranks_beyond_the_key_value_heads_hold_copies_next_to_their_query_heads():
    """By hand for 2 groups of 4 query heads of size 8 on 4 ranks: rank 1 has the first group's second half."""
    config = make_config("qwen2", hidden_size=64, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=1)
    for rank, (query, key) in enumerate([(0, 0), (16, 0), (32, 8), (48, 8)]):
        where = {"layer_offset": 0, "padded_vocab_size": 512, "rank": rank, "size": 4}
        for kind, rest in (("weight", (64,)), ("bias", ())):
            qkv = find_home(f"decoder.layers.0.self_attention.linear_qkv.{kind}", config, **where)
            starts = [(piece.source[0].start, piece.target[0].start) for piece in qkv.pieces]
            assert starts == [(query, 0), (key, 16), (key, 24)]
            assert qkv.shape == (32, *rest)
        out = find_home("decoder.layers.0.self_attention.linear_proj.weight", config, **where)
        assert out.pieces[0].source[1] == slice(query, query + 16)  # the same query heads


def test_a_tensor_without_a_place_is_named(alone, tmp_path):
    folder = write_llm(tmp_path, "llama")
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))
    with pytest.raises(ConfigError, match=r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias"):
        build(folder)


def test_a_missing_tensor_is_named(alone, tmp_path):
    folder = write_llm(tmp_path, "qwen3")
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_norm.weight"))
    with pytest.raises(ConfigError, match=r"lacks 1 tensors .* model\.layers\.1\.self_attn\.k_norm\.weight"):
        build(folder)


def test_a_tensor_of_another_shape_is_named(alone, tmp_path):
    folder = write_llm(tmp_path, "llama")
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' .* shape \(31,\).* says \(32,\)"):
        build(folder)


def test_a_parameter_without_a_name_is_named(alone, tmp_path):
    from nemo_desta.megatron.weights import load_weights

    folder = write_llm(tmp_path, "llama")
    llm = build(folder)
    llm.gpt.decoder.layers[1].extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match=r"'decoder\.layers\.1\.extra'"):
        load_weights(llm.gpt, folder, llm.hf_config, llm.layout)


def test_a_tied_llm_may_repeat_its_embeddings_as_head_but_not_contradict_them(alone, tmp_path):
    folder = write_llm(tmp_path, "qwen3_tied")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    build(folder)
    rewrite(folder, lambda t: t["lm_head.weight"][7].add_(1))
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        build(folder)


def test_frequencies_that_old_checkpoints_carry_are_no_weights(alone, tmp_path):
    folder = write_llm(tmp_path, "llama")
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    build(folder)


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied"])
def test_embedding_rms_is_that_of_the_hugging_face_model(tmp_path, kind, monkeypatch):
    from transformers import AutoModelForCausalLM

    from nemo_desta.core.build import embedding_rms as expected
    from nemo_desta.megatron import shards
    from nemo_desta.megatron.weights import embedding_rms

    folder = write_llm(tmp_path, kind, max_shard_size="20KB")
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1024)  # several blocks even here
    assert embedding_rms(folder) == pytest.approx(expected(AutoModelForCausalLM.from_pretrained(folder)), abs=1e-6)


def round_trip(cases):
    """To be launched: load, export into ``case["to"]``."""
    from nemo_desta.megatron.llm import build_llm
    from nemo_desta.megatron.weights import export_weights

    for case in cases:
        layout = Layout(**case["layout"])
        with groups(*sizes_of(layout)):
            llm = build_llm(case["folder"], layout, dtype=getattr(torch, case["dtype"]))
            export_weights(llm.gpt, case["to"], llm.hf_config, layout)


def assert_exported(folder, to):
    found, expected = read_all(to), load_file(folder / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("llama", "float32"), ("qwen2_tied", "bfloat16"), ("qwen3", "bfloat16"), ("mixtral", "float32")],
)
def test_export_gives_back_every_bit_on_one_rank(tmp_path, kind, dtype, monkeypatch):
    from nemo_desta.megatron import weights

    folder = write_llm(tmp_path / "from", kind, dtype=getattr(torch, dtype))
    monkeypatch.setattr(weights, "FILE_BYTES", 10_000)  # several files even here
    with one_process():
        round_trip([{"folder": folder, "to": tmp_path / "to", "dtype": dtype, "layout": {}}])
    assert_exported(folder, tmp_path / "to")
    assert len(list((tmp_path / "to").glob("*.safetensors"))) > 1
    for found, expected in zip(reference(tmp_path / "to"), reference(folder), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "layouts"),
    [
        (2, [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}]),
        (
            4,
            [
                {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
                {"tensor_parallel_size": 2},
                {"tensor_parallel_size": 4},
                {"tensor_parallel_size": 2, "context_parallel_size": 2},
            ],
        ),
    ],
)
def test_export_gives_back_every_bit_from_several_ranks(tmp_path, num_ranks, layouts):
    kinds = {"llama_scaled_tied": "float32", "qwen2": "bfloat16", "qwen3": "float32", "qwen3_moe": "bfloat16"}
    shared = [{"expert_parallel_size": 2, **({"pipeline_parallel_size": 2} if num_ranks == 4 else {})}]
    shared.append({"expert_parallel_size": 2, "tensor_parallel_size": 2})  # of four ranks two hold each expert
    cases = []
    for kind, dtype in kinds.items():
        folder = write_llm(tmp_path / kind, kind, dtype=getattr(torch, dtype))
        for number, layout in enumerate(shared if kind == "qwen3_moe" else layouts):
            to = str(tmp_path / f"{kind}{number}")
            cases.append({"folder": str(folder), "to": to, "dtype": dtype, "layout": layout})
    launch("tests.megatron.test_weights.round_trip", num_ranks, cases=cases)
    for case in cases:
        assert_exported(Path(case["folder"]), case["to"])


def loading_peak(folder, warm_up, block_bytes):
    """To be launched on two ranks: bytes of this rank's parameters and by how much memory grew at most.

    The kernel keeps the peak of all resident memory, mapped pages of the files included; nothing is left out.
    """
    from nemo_desta.megatron import shards
    from nemo_desta.megatron.llm import build_llm

    layout = Layout(tensor_parallel_size=2)
    with groups(2):
        build_llm(warm_up, layout, dtype=torch.float32)  # what is imported and allocated once
        shards.BLOCK_BYTES = block_bytes or shards.BLOCK_BYTES
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _resident("VmHWM")
        llm = build_llm(folder, layout, dtype=torch.float32)
        return {
            "share": sum(parameter.nbytes for parameter in llm.parameters()),
            "grown": _resident("VmHWM") - before,
        }


def _resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


@pytest.mark.slow
def test_loading_needs_little_more_memory_than_a_ranks_share(tmp_path):
    from transformers import AutoModelForCausalLM

    shape = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 3, "vocab_size": 8192}
    AutoModelForCausalLM.from_config(make_config("llama", **shape)).save_pretrained(tmp_path / "large")
    small = write_llm(tmp_path / "small", "llama")
    arguments = {"folder": str(tmp_path / "large"), "warm_up": str(small)}
    for rank in launch("tests.megatron.test_weights.loading_peak", 2, block_bytes=0, **arguments):
        assert rank["share"] > 90e6
        assert rank["grown"] < 1.3 * rank["share"]
    # the measure sees it when files stay mapped
    for rank in launch("tests.megatron.test_weights.loading_peak", 2, block_bytes=1 << 40, **arguments):
        assert rank["grown"] > 1.5 * rank["share"]
