"""The script that measures a training step runs, compares like with like, and takes the model's own step."""

import json
import re
import statistics
from pathlib import Path

import pytest
import torch

from benchmarks import train_step, train_step_flops
from benchmarks import train_step_rows as rows_of
from benchmarks.train_step_profile import PARTS
from benchmarks.train_step_rows import SAMPLING_RATE, BenchRow
from benchmarks.train_step_shapes import build_encoders, build_llm, shape
from benchmarks.train_step_variants import Parts, make_loss, our_loss, variants
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import WindowProjector

README = Path(train_step.__file__).with_name("README.md")
CPU, META = torch.device("cpu"), torch.device("meta")
NOISE = 0.1 * torch.randn(30 * SAMPLING_RATE, generator=torch.Generator().manual_seed(0))
SHORT = [BenchRow(16_000, 8, 20), BenchRow(40_000, 12, 9), BenchRow(9_999, 5, 30)]


def test_runs_every_measure_on_tiny_shapes_and_writes_what_it_prints(tmp_path, capsys):
    names = ["ours", "plain", "random-batches", "checkpointing", "torch-loss", "float32"]
    report = train_step.main(
        ["--shape", "tiny", "--device", "cpu", "--steps", "2", "--warmup", "1", "--profiled", "1", "--batch-tokens"]
        + ["700", "--json", str(tmp_path / "out" / "report.json"), "--variants", *names]
    )
    printed = capsys.readouterr().out
    assert list(report["variants"]) == names[:4]
    assert set(report["skipped"]) == {"torch-loss", "float32"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["variants"] == report["variants"]
    for result in report["variants"].values():
        assert f"| {result['variant']['name']} |" in printed
        assert sum(result["shares"].values()) == pytest.approx(1.0)
        assert list(result["shares"]) == list(PARTS)
        assert min(result["shares"][part] for part in ("encoder", "projector", "llm", "loss", "optimizer")) > 0
        assert result["mfu"] is None and result["peak_memory_bytes"] is None  # a CPU has no figure to claim
        assert result["rows"] == report["about"]["rows"]["count"]
    assert report["about"]["versions"]["torch"] == torch.__version__


def test_all_variants_of_our_step_have_the_same_loss():
    batch = rows_of.collate(SHORT, NOISE, vocab_size=256)
    losses = {}
    for name, variant in variants(torch.float32).items():
        if name in ("plain", "compiled"):
            continue
        torch.manual_seed(0)
        loss, num_targets = make_loss(Parts(shape("tiny"), variant, CPU), variant)(batch)
        assert num_targets == 59
        losses[name] = loss.item()
    # BEATs on 30 s cuts its chunks elsewhere: close, not equal
    assert losses.pop("pad-encoders") == pytest.approx(losses["ours"], rel=1e-2)
    assert losses == {name: pytest.approx(losses["ours"], rel=1e-5) for name in losses}


def test_our_step_is_the_models_own(tmp_path):
    pytest.importorskip("nemo")
    from nemo_desta.models import DestaModel
    from nemo_desta.testing.models import tiny_config

    model = DestaModel(tiny_config(tmp_path))
    batch = rows_of.collate(SHORT, NOISE, vocab_size=model.llm.config.vocab_size)
    expected, num_targets, _ = model.loss(batch)
    loss, ours = our_loss(model.llm, model.perception, batch)
    assert (loss.item(), ours) == (expected.item(), num_targets)


def test_plain_recipe_reads_thirty_seconds_into_64_vectors():
    plain = variants(torch.float32)["plain"]
    parts = Parts(shape("tiny"), plain, CPU)
    assert parts.perception.num_tokens(30 * SAMPLING_RATE) == 64
    loss, num_targets = make_loss(parts, plain)(rows_of.collate(SHORT, NOISE, vocab_size=256))
    loss.backward()
    assert num_targets == 59
    assert all(p.grad is not None for p in parts.perception.projector.parameters())


def test_rows_look_like_the_corpus():
    rows = rows_of.make_rows(20_000, seed=0)
    secs = [row.num_samples / SAMPLING_RATE for row in rows]
    assert statistics.mean(secs) == pytest.approx(11.0, abs=0.2)
    assert (min(secs), max(secs)) == (1.0, 30.0)
    assert (min(row.target_tokens for row in rows), max(row.target_tokens for row in rows)) == (100, 600)
    assert rows_of.make_rows(50, seed=1) == rows_of.make_rows(50, seed=1) != rows_of.make_rows(50, seed=2)


def test_batches_stay_within_the_budget_and_bucketing_saves_padding():
    rows = rows_of.make_rows(2048, seed=0)
    padding = {}
    for name, batches in (
        ("bucketed", rows_of.bucketed(rows, 8192, 6.25)),
        ("random", rows_of.cut(rows_of.shuffled(rows, 0), 8192, 6.25)),
    ):
        assert sorted(row for batch in batches for row in batch) == sorted(rows)
        sizes = [len(batch) * max(row.positions(6.25) for row in batch) for batch in batches]
        assert max(sizes) <= 8192
        padding[name] = 1 - sum(row.positions(6.25) for row in rows) / sum(sizes)
    assert padding["bucketed"] < 0.02 < 0.2 < padding["random"]


@pytest.mark.parametrize(("name", "billions"), [("qwen3-4b", 4.022), ("llama3-8b", 8.030)])
def test_real_shapes_have_the_published_sizes(name, billions):
    chosen = shape(name)
    llm = build_llm(chosen, META, torch.bfloat16, "sdpa")
    assert sum(p.numel() for p in llm.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    encoders = build_encoders(chosen, META, torch.bfloat16, "sdpa", ("whisper", "beats"))
    assert sum(p.numel() for p in encoders["beats"].parameters()) == 90_311_792
    assert sum(p.numel() for p in encoders["whisper"].parameters()) / 1e6 == pytest.approx(637.0, abs=1)


def test_model_flops_of_a_row_at_real_size():
    chosen = shape("qwen3-4b")
    llm = build_llm(chosen, META, torch.bfloat16, "sdpa")
    # 3.63e9 linear weights and 0.39e9 of the head: 4 FLOPs each per position or target, plus causal attention
    flops = train_step_flops._llm(llm, positions=[500], targets=400)
    linear = 4 * (36 * (2560 * 4096 * 2 + 2560 * 1024 * 2 + 3 * 2560 * 9728) * 500 + 2560 * 151_936 * 400)
    assert flops == pytest.approx(linear + 6 * 4096 * 36 * 500**2)
    whisper = build_encoders(chosen, META, torch.bfloat16, "sdpa", ("whisper",))["whisper"]
    assert train_step_flops._encoder(whisper, [11 * SAMPLING_RATE]) == pytest.approx(2.26e12, rel=0.02)
    assert train_step_flops.peak_flops(CPU) is None


@pytest.mark.parametrize(("name", "line"), [("qwen3-4b", "Qwen3-4B"), ("llama3-8b", "Llama-3.1-8B")])
def test_the_readme_states_what_the_arithmetic_gives(name, line):
    """TFLOP per row and audio hours per GPU hour: columns 2 and 8 of the README's table."""
    cells = re.search(rf"^\| {line} \|(.*)\|$", README.read_text(), re.MULTILINE)[1].replace(",", "").split("|")
    tera, rate = float(cells[0]), float(cells[6])
    chosen, rows = shape(name), rows_of.make_rows(2048, seed=0)
    llm = build_llm(chosen, META, torch.bfloat16, "sdpa")
    encoders = build_encoders(chosen, META, torch.bfloat16, "sdpa", ("whisper", "beats"))
    perception = FusedPerception(encoders, WindowProjector(encoders, chosen.llm.hidden_size))
    flops = train_step_flops.step_flops(rows, llm, perception)
    audio_hours = sum(row.num_samples for row in rows) / SAMPLING_RATE / 3600
    assert flops / len(rows) / 1e12 == pytest.approx(tera, abs=0.05)
    assert audio_hours / (flops / 989.4e12 / 3600) == pytest.approx(rate, abs=1)
