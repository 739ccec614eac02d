"""The planner's arithmetic against what torch holds, and what it says to its user."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_desta.config import LoraConfig, ModelConfig, parse
from nemo_desta.megatron import audio_memory, llm_memory
from nemo_desta.megatron.audio_memory import perceive
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.llm_configs import KNOWN, find_llm
from nemo_desta.megatron.llm_memory import Load
from nemo_desta.megatron.lora import TARGETS
from nemo_desta.megatron.plan import main
from tests.megatron.launch import launch
from tests.megatron.llms import KINDS, groups, make_config, one_process
from tests.megatron.memory import step_bytes

ROOT = Path(__file__).resolve().parents[2]
#: Wide enough that indices and masks, which no formula counts, are small beside activations.
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
}
STEP = {"rows": 3, "length": 63, "targets": 72, "micro_batches": 2}


WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 20, "num_hidden_layers": 6}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True}


def case(model_type="qwen3", dtype="bfloat16", recompute=False, tied=False, lora=None, changes=None, **layout):
    sizes = {**SIZES, "tie_word_embeddings": tied, **(EXPERTS if model_type == "qwen3_moe" else {}), **(changes or {})}
    given = {
        "layout": layout,
        "model_type": model_type,
        "sizes": sizes,
        "dtype": dtype,
        "recompute": recompute,
        **STEP,
    }
    return given | ({"lora": lora} if lora else {})


def assert_planned(given, stage, found, targets=STEP["targets"]):
    """``weights``, ``kept`` for backward and ``alive`` at most are what the planner says for a rank of ``stage``."""
    config, layout = make_config(given["model_type"], **given["sizes"]), Layout(**given["layout"])
    width = getattr(torch, given["dtype"]).itemsize
    lora = LoraConfig(**given["lora"]) if "lora" in given else None
    load = Load(STEP["rows"], STEP["length"], targets, width, "local", given["recompute"], lora)
    is_last = stage == layout.pipeline_parallel_size - 1
    flying = llm_memory.in_flight(layout, stage, STEP["micro_batches"])
    kept = flying * llm_memory.kept_bytes(config, layout, stage, load)
    handed = flying * llm_memory.sent_bytes(config, layout, stage, load)
    logits = llm_memory.logits_bytes(config, layout, load) if is_last else 0
    working = llm_memory.working_bytes(config, layout, load)
    # kept beside what waits: one layer while it is computed again, or the softmax in float32
    softmax = logits * 4 // (4 + (width if width < 4 else 0))
    layer = working - llm_memory.working_bytes(config, layout, replace(load, recompute=False))
    assert found["weights"] == llm_memory.num_parameters(config, layout, stage) * width
    assert found["trained"] == llm_memory.num_lora_parameters(config, layout, stage, lora)
    assert kept + max(softmax, layer) == pytest.approx(found["kept"], rel=0.01)
    assert kept + handed + max(logits, working) == pytest.approx(found["alive"], rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_one_rank_holds_what_is_planned(model_type, dtype, recompute):
    given = case(model_type, dtype, recompute)
    with one_process():
        (found,) = step_bytes([given])
    assert_planned(given, 0, found)


@pytest.mark.parametrize(
    "given",
    [
        case("qwen3_moe"),
        case("qwen3_moe", "float32", recompute=True, changes={"norm_topk_prob": False}),
        case("mixtral", changes={"num_local_experts": 4, "num_experts_per_tok": 2}),
        case("gemma3_text", changes=WINDOWS),
        case("gemma3_text", "float32", recompute=True, changes=WINDOWS),
    ],
    ids=["qwen3_moe", "shares", "mixtral", "windows", "windows, recomputed"],
)
def test_one_rank_with_experts_or_windows_holds_what_is_planned(given):
    with one_process():
        (found,) = step_bytes([given])
    assert_planned(given, 0, found)


ATTENTION = {"r": 4, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj", "o_proj"]}
EVERYWHERE = {**ATTENTION, "target_modules": list(TARGETS), "dropout": 0.0}


@pytest.mark.parametrize(
    "given",
    [
        case("llama", lora=ATTENTION),
        case("qwen3", "float32", lora=EVERYWHERE),
        case("llama", recompute=True, lora={**EVERYWHERE, "dropout": 0.1}),
    ],
    ids=["dropout", "everywhere", "recompute"],
)
def test_one_rank_with_lora_holds_what_is_planned(given):
    with one_process():
        (found,) = step_bytes([given])
    assert_planned(given, 0, found)


TENSOR = {"tensor_parallel_size": 2}
SEQUENCE = {**TENSOR, "sequence_parallel": True}
PIPELINE = {"pipeline_parallel_size": 2}
CONTEXT = {"context_parallel_size": 2}
EXPERT = {"expert_parallel_size": 2}
ONE_KEY = {"num_key_value_heads": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases",
    [
        [case(**TENSOR), case("llama", recompute=True, **TENSOR)],
        [case(**SEQUENCE), case("llama", recompute=True, **SEQUENCE)],
        [case(tied=True, **PIPELINE), case("llama", recompute=True, **PIPELINE), case(dtype="float32", **PIPELINE)],
        [case("qwen2", changes=ONE_KEY, **TENSOR), case("qwen3_moe", **SEQUENCE)],
        [case("llama", lora=EVERYWHERE, **TENSOR), case("qwen3", lora=ATTENTION, **SEQUENCE)],
        [case(**CONTEXT), case("llama", recompute=True, **CONTEXT), case(dtype="float32", **CONTEXT)],
    ],
    ids=["TP2", "TP2+SP", "PP2", "one key-value head, experts", "LoRA", "CP2"],
)
def test_each_of_two_ranks_holds_what_is_planned(cases):
    by_rank = launch("tests.megatron.memory.step_bytes", 2, cases=cases)
    for rank, results in enumerate(by_rank):
        for given, found in zip(cases, results, strict=True):
            # states that predict are 38 to 61 of 64 positions; rank 0 has 0 to 15 and from 48 on
            targets = {"targets": STEP["rows"] * (14, 10)[rank] * 2} if given["layout"] == CONTEXT else {}
            assert_planned(given, rank if "pipeline_parallel_size" in given["layout"] else 0, found, **targets)


@pytest.mark.slow
def test_ranks_that_share_experts_hold_on_average_what_is_planned():
    """The router decides which rank gets more positions; the planner takes their loads as equal."""
    cases = [case("qwen3_moe", **EXPERT), case("qwen3_moe", recompute=True, **EXPERT)]
    by_rank = launch("tests.megatron.memory.step_bytes", 2, cases=cases)
    for given, (one, other) in zip(cases, zip(*by_rank, strict=True), strict=True):
        assert_planned(given, 0, {key: (one[key] + other[key]) / 2 for key in one})


def test_weights_of_every_kind_of_llm_are_counted_exactly():
    from nemo_desta.megatron.llm import StageLLM

    with one_process(), groups():
        for model_type, changes in KINDS.values():
            config = make_config(model_type, **changes)
            llm = StageLLM(config, Layout(), dtype=torch.float32)
            counted = llm_memory.num_parameters(config, Layout(), 0)
            assert counted == sum(parameter.numel() for parameter in llm.parameters()), model_type


#: Parameters as the model cards state them, in 1e9, rounded there.
MODEL_CARDS = {
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "llama-3.2-1b": 1.24,
    "llama-3.2-3b": 3.21,
    "qwen2.5-7b": 7.61,
    "qwen2.5-14b": 14.7,
    "qwen2.5-32b": 32.5,
    "qwen2.5-72b": 72.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.2,
    "qwen3-14b": 14.8,
    "qwen3-32b": 32.8,
    "qwen3-30b-a3b": 30.5,
    "qwen3-30b-a3b-thinking": 30.5,
    "mixtral-8x7b": 46.7,
    "gemma-3-1b": 1.0,
    "gemma-3-4b": 3.88,  # without the vision tower
    "gemma-3-12b": 11.77,
}


def test_llms_known_by_name_have_the_parameters_of_their_model_cards():
    assert set(MODEL_CARDS) == set(KNOWN)
    for name, billions in MODEL_CARDS.items():
        _, config = find_llm(name)
        padding = Layout().padded_vocab_size(config.vocab_size) - config.vocab_size
        tables = 1 if config.tie_word_embeddings else 2
        counted = llm_memory.num_parameters(config, Layout(), 0) - tables * padding * config.hidden_size
        assert counted / 1e9 == pytest.approx(billions, rel=0.01), name


#: Parameters of the checkpoints' encoders, up to the last tapped block.
ENCODER_PARAMETERS = {
    "whisper-small": 88_152_576,
    "whisper-medium": 307_214_336,
    "whisper-large-v3": 636_966_400,
    "beats": 90_311_792,
}


def test_encoders_have_the_parameters_of_the_checkpoints():
    assert set(ENCODER_PARAMETERS) == set(audio_memory.ENCODERS)
    for name, count in ENCODER_PARAMETERS.items():
        assert perceive(name, "window", 256, 1.0).frozen == count


@pytest.mark.parametrize(
    ("projector", "encoders", "width", "count"),
    [
        ("qformer", "whisper-large-v3", 4096, 131_540_224),
        ("qformer_2l", "whisper-small", 4096, 22_251_776),
        ("conv", "whisper-large-v3", 2560, 18_625_028),
    ],
)
def test_projectors_have_the_parameters_that_their_configs_state(projector, encoders, width, count):
    assert perceive(encoders, projector, width, 1.0).trained == count
    assert f"{count:,} parameters" in (ROOT / "conf" / "projector" / f"{projector}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("projector", "vectors"), [("window", 188), ("qformer", 64), ("conv", 750), ("window_qformer", 89)]
)
def test_a_clip_of_30_seconds_becomes_the_vectors_of_its_projector(projector, vectors):
    assert perceive("whisper-small", projector, 256, 30.0).vectors == vectors


# ---- what it says


def plan(capsys, *words, code=0):
    assert main(words) == code
    return capsys.readouterr()


def answer(capsys, *words, code=0):
    return json.loads(plan(capsys, *words, "--json", code=code).out)


def test_a_70b_llm_on_eight_gpus_gets_a_layout_that_fits(capsys):
    found = answer(capsys, "--llm", "llama-3.1-70b", "--gpus", "8")
    best = found["recommended"]["layout"]
    assert best["total"] <= found["usable"]
    assert best["tensor_parallel_size"] * best["pipeline_parallel_size"] >= 2, "141 GB of weights need two GPUs"
    assert all(layout["fits"] for layout in found["layouts"])
    everything = answer(capsys, "--llm", "llama-3.1-70b", "--gpus", "8", "--all")["layouts"]
    assert any(not layout["fits"] for layout in everything)
    # all copies of the LLM together hold its weights once each, beside padding of the vocabulary
    for layout in everything:
        held = sum(stage["weights"] for stage in layout["stages"]) * layout["tensor_parallel_size"]
        assert held / 2 == pytest.approx(70.55e9, rel=0.01)


def test_parallelism_and_recomputation_save_what_they_should(capsys):
    words = ("--llm", "qwen3-32b", "--gpus", "8", "--all")
    found = {
        (layout["tensor_parallel_size"], layout["pipeline_parallel_size"], layout["recompute"]): layout["stages"]
        for layout in answer(capsys, *words)["layouts"]
    }
    one, eight = found[1, 1, False][0], found[8, 1, False][0]
    assert one["weights"] / eight["weights"] == pytest.approx(8, rel=0.01)
    assert one["activations"] / eight["activations"] == pytest.approx(8, rel=0.1)
    assert found[8, 1, True][0]["activations"] < eight["activations"] / 5
    first, last = found[1, 2, False]
    assert first["activations"] > 1.9 * last["activations"], "two micro-batches are under way on the first stage"
    assert last["encoders"] == last["projector"] == first["logits"] == 0
    unshared = answer(capsys, *words, "--sequence-parallel", "off")["layouts"]
    without = next(layout for layout in unshared if layout["tensor_parallel_size"] == 8 and not layout["recompute"])
    assert without["stages"][0]["activations"] > eight["activations"]


def test_an_llm_that_fits_one_gpu_is_sent_to_ddp(capsys):
    best = answer(capsys, "--llm", "llama-3.1-8b", "--gpus", "8")["recommended"]
    assert best["layout"]["data_parallel_size"] == 8
    assert "strategy=ddp does the same" in best["reason"]


def test_where_nothing_fits_it_says_what_would(capsys):
    said = plan(capsys, "--llm", "llama-3.1-70b", "--gpus", "1", code=1).out
    assert "nothing fits" in said and re.search(r"4 GPUs instead of 1: TP\d x PP\d", said)
    crowded = answer(capsys, "--llm", "llama-3.1-70b", "--gpus", "2", code=1)
    assert any(way["change"].startswith("micro-batches of") for way in crowded["would_fit"])
    assert all(way["layout"]["fits"] for way in crowded["would_fit"])


def test_experts_are_spread_inside_a_node_where_they_do_not_fit_one_gpu(capsys):
    best = answer(capsys, "--llm", "qwen3-30b-a3b", "--gpus", "16", "--gpus-per-node", "4")["recommended"]
    layout = best["layout"]
    assert (layout["tensor_parallel_size"], layout["expert_parallel_size"], layout["data_parallel_size"]) == (1, 4, 16)
    assert "strategy.expert_parallel_size=4" in best["command"] and "experts spread over 4 GPUs" in best["reason"]
    everything = answer(capsys, "--llm", "qwen3-30b-a3b", "--gpus", "16", "--gpus-per-node", "4", "--all")["layouts"]
    assert {layout["expert_parallel_size"] for layout in everything} == {1, 2, 4}
    weights = {
        layout["expert_parallel_size"]: layout["stages"][0]["weights"]
        for layout in everything
        if layout["tensor_parallel_size"] == layout["pipeline_parallel_size"] == 1
    }
    experts = 48 * 128 * 3 * 2048 * 768 * 2
    assert weights[1] - weights[4] == experts * 3 / 4


def test_positions_are_split_only_where_nothing_else_fits(capsys):
    gpus = ("--gpus", "16", "--gpus-per-node", "2", "--gpu-memory-gb", "40")
    words = ("--llm", "qwen3-8b", *gpus, "--micro-batch", "1")
    long = answer(capsys, *words, "--seq-len", "131072", "--all")["layouts"]
    by_context = {size: [one for one in long if one["context_parallel_size"] == size] for size in (1, 2, 4, 8)}
    assert not any(one["fits"] for one in by_context[1])
    best = answer(capsys, *words, "--seq-len", "131072")["recommended"]
    assert f"strategy.context_parallel_size={best['layout']['context_parallel_size']}" in best["command"]
    assert best["layout"]["context_parallel_size"] > 1
    short = answer(capsys, *words, "--all")["layouts"]
    assert {one["context_parallel_size"] for one in short} == {1}


def test_lora_takes_memory_and_time(capsys):
    words = ("--llm", "qwen3-8b", "--gpus", "2")
    given = [], ["--lora-rank", "8"], ["--lora-rank", "8", "--lora-targets", "q_proj,up_proj,down_proj"]
    without, attention, everywhere = (
        next(one for one in answer(capsys, *words, *more)["layouts"] if one["tensor_parallel_size"] == 2)
        for more in given
    )
    assert without["total"] < attention["total"] < everywhere["total"]
    assert attention["stages"][0]["lora"] == 36 * 8 * (4096 + 4096 + 2 * (4096 + 1024)) * 2 * 4
    assert without["rate"] > attention["rate"] > everywhere["rate"]
    command = answer(capsys, *words, *given[1])["recommended"]["command"]
    assert "model.llm.lora={r: 8, target_modules: [q_proj, k_proj, v_proj]}" in command
    printed = plan(capsys, *words, *given[1]).out
    assert shlex.split(printed[printed.index("desta train") :].replace("\\\n", "")) == command


def test_time_and_cost_follow_from_flops_mfu_and_price(capsys):
    words = ("--llm", "qwen3-8b", "--gpus", "2", "--mfu", "0.4", "--corpus-hours", "300", "--epochs", "2")
    best = answer(capsys, *words, "--price", "3")["recommended"]
    layout, time = best["layout"], best["time"]
    secs = sum(time["flops"].values()) / (989e12 * 0.4)
    assert layout["rate"] == pytest.approx(4 * 30 / secs)
    assert time["gpu_hours"] == pytest.approx(300 * 2 / layout["rate"])
    assert time["hours"] == time["gpu_hours"] / 2 and time["cost"] == 3 * time["gpu_hours"]
    said = plan(capsys, *words, "--price", "3").out
    assert "at MFU 0.4 of h100 (989 TFLOP/s), assumed" in said and "300 h of audio x 2 epochs" in said
    again = answer(capsys, *words, "--recompute")["recommended"]["layout"]
    assert again["rate"] < layout["rate"] / 1.4
    faster = answer(capsys, *words, "--gpu", "b200")
    assert faster["asked"]["gpu_memory_gb"] == 178
    assert answer(capsys, *words, "--dtype", "float32")["recommended"]["time"] is None


def test_with_a_feature_cache_a_clip_is_encoded_in_one_epoch_only(capsys):
    words = ("--llm", "qwen3-8b", "--gpus", "2", "--corpus-hours", "300", "--epochs", "4")
    without, cached = (answer(capsys, *words, *more)["recommended"] for more in ([], ["--feature-cache"]))
    assert cached["time"]["flops"]["encoders"] == pytest.approx(without["time"]["flops"]["encoders"] / 4)
    assert cached["time"]["gpu_hours"] < without["time"]["gpu_hours"]
    # 4 layers of each encoder in bfloat16: 1,280 and 768 channels at 50 frames per second
    assert cached["time"]["feature_cache"] == pytest.approx(300 * 3600 * 50 * 4 * (1280 + 768) * 2, rel=0.01)
    assert "data.feature_cache={folder: null}" in cached["command"]
    assert "feature cache: 885 GB" in plan(capsys, *words, "--feature-cache").out


def test_pipeline_stages_wait_for_the_slowest(capsys):
    layouts = answer(capsys, "--llm", "qwen3-32b", "--gpus", "8", "--all")["layouts"]
    rates = {
        (one["tensor_parallel_size"], one["pipeline_parallel_size"]): one["rate"]
        for one in layouts
        if one["recompute"]
    }
    assert rates[4, 1] == pytest.approx(rates[8, 1])
    assert (
        rates[4, 2] < rates[4, 1] * 8 / 9
    )  # 8 micro-batches pass 2 stages in 9 steps, the first stage has the encoders


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--llm", "lama-3.1-8b"], "Did you mean 'llama-3.1-8b'"),
        (["--llm", "{folder}"], "no config.json at"),
        (["--llm", "{folder}/other.json"], "no config.json at"),
        (["--llm", "qwen3-8b", "--seq-len", "0"], "--seq-len must be at least 1, found 0"),
        (["--llm", "qwen3-8b", "--gpus", "-1"], "--gpus must be at least 1, found -1"),
        (["--llm", "qwen3-8b", "--gpus", "12"], "--gpus-per-node"),
        (["--llm", "qwen3-8b", "--gpu-memory-gb", "4"], "--gpu-memory-gb=4 with --reserve-gb=6 leaves nothing"),
        (["--llm", "qwen3-8b", "--supervised", "1.5"], "found 1.5"),
        (["--llm", "qwen3-8b", "--projector", "windo"], "Did you mean 'window'?"),
        (["--llm", "qwen3-8b", "--mfu", "35"], "above 0 and at most 1, found 35"),
        (["--llm", "qwen3-8b", "--epochs", "0"], "--corpus-hours and --epochs must be positive"),
        (["--llm", "qwen3-8b", "--lora-rank", "0"], "--lora-rank must be at least 1, found 0"),
        (["--llm", "qwen3-8b", "--lora-rank", "4", "--lora-targets", "q_prj"], "Did you mean 'q_proj'?"),
        (["--llm", "qwen3-30b-a3b", "--lora-rank", "4", "--lora-targets", "up_proj"], "this LLM has no 'up_proj'"),
        (["--llm", "qwen3-8b", "--encoders", "whisper-large-v3+beat"], "unknown encoder 'beat'. Did you mean 'beats'"),
    ],
)
def test_a_question_that_cannot_be_answered_is_an_error_that_names_it(capsys, tmp_path, words, named):
    said = plan(capsys, *(word.format(folder=tmp_path) for word in words), code=2)
    assert said.out == "" and named in said.err


def test_any_config_will_do_if_the_llm_is_covered(capsys, tmp_path):
    make_config("qwen3", **SIZES).save_pretrained(tmp_path / "mine")
    for source in (tmp_path / "mine", tmp_path / "mine" / "config.json"):
        found = answer(capsys, "--llm", str(source), "--gpus", "2")
        assert found["llm"] == str(tmp_path / "mine")
        assert {layout["tensor_parallel_size"] for layout in found["layouts"]} == {1, 2}
    make_config("gemma2").save_pretrained(tmp_path / "other")
    assert "is of type 'gemma2'" in plan(capsys, "--llm", str(tmp_path / "other"), code=2).err


def test_only_layouts_that_the_llm_can_take_are_shown(capsys):
    """Qwen2.5-7B has 4 key-value groups and 28 layers: no TP8, and 3 GPUs go only into stages or copies."""
    shown = answer(capsys, "--llm", "qwen2.5-7b", "--gpus", "8", "--all")["layouts"]
    assert {layout["tensor_parallel_size"] for layout in shown} == {1, 2, 4}
    three = answer(capsys, "--llm", "qwen2.5-7b", "--gpus", "3", "--all")["layouts"]
    sizes = {(layout["tensor_parallel_size"], layout["pipeline_parallel_size"]) for layout in three}
    assert sizes == {(1, 1), (1, 3)}


@pytest.mark.parametrize(
    "words",
    [
        ("--llm", "llama-3.1-70b"),
        ("--llm", "qwen3-32b", "--gpus", "16", "--recompute", "--projector", "conv", "--lora-rank", "4"),
        ("--llm", "qwen3-30b-a3b", "--feature-cache", "--epochs", "5"),
    ],
)
def test_the_command_it_gives_is_one_that_training_takes(capsys, words):
    from tests.test_conf import GIVEN, composed

    found = answer(capsys, *words)["recommended"]
    desta, job, _, config, *overrides = found["command"]
    assert (desta, job) == ("desta", "train")
    settings = composed(config, *GIVEN, *overrides)
    trainer, layout = settings["trainer"], found["layout"]
    assert settings["strategy"]["tensor_parallel_size"] == layout["tensor_parallel_size"]
    assert settings["strategy"]["sequence_parallel"] is layout["sequence_parallel"]
    processes = trainer["devices"] * trainer["num_nodes"]
    parts = layout["tensor_parallel_size"] * layout["pipeline_parallel_size"]
    assert processes == parts * layout["data_parallel_size"]
    assert parse(ModelConfig, settings["model"]).activation_checkpointing is layout["recompute"]
    assert settings["data"]["train_ds"]["batch_tokens"] == 4 * 2048


@pytest.mark.parametrize("llm", ["llama-3.1-70b", "qwen3-30b-a3b"])
def test_the_tables_of_the_documentation_are_what_it_prints(capsys, llm):
    printed, _, _ = plan(capsys, "--llm", llm, "--gpus", "8").out.partition("\n\ndesta train ")
    page = (ROOT / "docs" / "megatron.md").read_text(encoding="utf-8")
    assert printed in page, f"put it into docs/megatron.md:\n{printed}"
