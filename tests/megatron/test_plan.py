"""The planner's arithmetic against what torch holds, and what it says to its user."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_desta.config import ModelConfig, parse
from nemo_desta.megatron import audio_memory, llm_memory
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.llm_configs import KNOWN, find_llm
from nemo_desta.megatron.llm_memory import Load
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


def case(model_type="qwen3", dtype="bfloat16", recompute=False, tied=False, **layout):
    sizes = {**SIZES, "tie_word_embeddings": tied}
    return {"layout": layout, "model_type": model_type, "sizes": sizes, "dtype": dtype, "recompute": recompute, **STEP}


def assert_planned(given, stage, found):
    """``weights``, ``kept`` for backward and ``alive`` at most are what the planner says for a rank of ``stage``."""
    config, layout = make_config(given["model_type"], **given["sizes"]), Layout(**given["layout"])
    width = getattr(torch, given["dtype"]).itemsize
    load = Load(STEP["rows"], STEP["length"], STEP["targets"], width, "local", given["recompute"])
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


TENSOR = {"tensor_parallel_size": 2}
SEQUENCE = {**TENSOR, "sequence_parallel": True}
PIPELINE = {"pipeline_parallel_size": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases",
    [
        [case(**TENSOR), case("llama", recompute=True, **TENSOR)],
        [case(**SEQUENCE), case("llama", recompute=True, **SEQUENCE)],
        [case(tied=True, **PIPELINE), case("llama", recompute=True, **PIPELINE), case(dtype="float32", **PIPELINE)],
    ],
    ids=["TP2", "TP2+SP", "PP2"],
)
def test_each_of_two_ranks_holds_what_is_planned(cases):
    by_rank = launch("tests.megatron.memory.step_bytes", 2, cases=cases)
    for rank, results in enumerate(by_rank):
        for given, found in zip(cases, results, strict=True):
            assert_planned(given, rank if "pipeline_parallel_size" in given["layout"] else 0, found)


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


def test_encoders_and_projector_are_counted_as_the_real_ones():
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Whisper

    from nemo_desta.perception.encoders import BeatsEncoder, WhisperEncoder
    from nemo_desta.perception.encoders.beats_model import Beats, BeatsConfig
    from nemo_desta.perception.projector import WindowProjector

    def whisper(width, layers, mel_bands):
        sizes = {"encoder_layers": layers, "encoder_attention_heads": width // 64, "encoder_ffn_dim": 4 * width}
        with torch.device("meta"):
            model = Whisper(WhisperConfig(d_model=width, num_mel_bins=mel_bands, **sizes))
        return WhisperEncoder(model, num_layers=layers, layer_ids=[layers * i // 4 for i in (1, 2, 3, 4)])

    with torch.device("meta"):
        beats = Beats(BeatsConfig())
    encoders = {
        "whisper-small": whisper(768, 12, 80),
        "whisper-medium": whisper(1024, 24, 80),
        "whisper-large-v3": whisper(1280, 32, 128),
        "beats": BeatsEncoder(beats, layer_ids=[3, 6, 9, 12]),
    }
    assert set(encoders) == set(audio_memory.ENCODERS)
    for name, encoder in encoders.items():
        counted = audio_memory.ENCODERS[name]
        assert (counted.parameters, counted.width) == (numbers(encoder), encoder.hidden_size)
    two = ("whisper-large-v3", "beats")
    projector = WindowProjector({name: encoders[name] for name in two}, 256, output_rms=1.0)
    known = audio_memory.find_encoders("+".join(two))
    # BEATs windows read a step more than their share of frames: eight position biases
    assert audio_memory.projector_parameters(known, 256) == pytest.approx(numbers(projector), rel=1e-4)


def numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


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


@pytest.mark.parametrize("words", [("--llm", "llama-3.1-70b"), ("--llm", "qwen3-32b", "--gpus", "16", "--recompute")])
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


@pytest.mark.parametrize("llm", ["llama-3.1-70b", "qwen3-32b"])
def test_the_tables_of_the_documentation_are_what_it_prints(capsys, llm):
    printed, _, _ = plan(capsys, "--llm", llm, "--gpus", "8").out.partition("\n\ndesta train ")
    page = (ROOT / "docs" / "megatron.md").read_text(encoding="utf-8")
    assert printed in page, f"put it into docs/megatron.md:\n{printed}"
