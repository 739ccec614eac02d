"""``check=true``: it refuses what cannot run, each in one line, and says what a run would read, train and take."""

import json
import re

import pytest

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.settings import BadRowSettings
from nemo_desta.testing.data import tiny_rows, tiny_tokenizer
from nemo_desta.training.check_data import Rows, check_data, refuse_bad_rows
from nemo_desta.training.fit import fit
from nemo_desta.training.overrides import with_empty
from nemo_desta.user_errors import one_line

ROWS = "data.train_ds.input_cfg.0.rows"


def refused(workplace, *flags, **more):
    with pytest.raises(Exception) as caught:
        fit(workplace.config("checked", *flags, check="true", **more))
    line = one_line(caught.value)
    assert line is not None and "\n" not in line, repr(caught.value)
    return line


def report(workplace, capsys, *flags, **more):
    fit(workplace.config("checked", *flags, **{"check": "true", **more}))
    assert not (workplace.folder / "checked").exists()
    return {line[:15].strip(): line[15:] for line in capsys.readouterr().out.splitlines() if line[14:15] == " "}


@pytest.mark.parametrize(
    ("setting", "value", "parts"),
    [
        ("trainer.max_steps", "many", ["'trainer.max_steps' must be a whole number, found 'many'"]),
        ("trainer.max_steps", 0, ["'trainer.max_steps' must be at least 1"]),
        ("trainer.max_steps", 2, ["warmup_steps' is 2 of 2 steps", "model.lr_scheduler.warmup_steps=1"]),
        ("+trainer.max_step", 5, ["unknown key 'trainer.max_step'", "'max_steps'?"]),
        ("trainer.precision", "fp16", ["'trainer.precision'", "found 'fp16'", "Did you mean 'bf16'?"]),
        ("trainer.accelerator", "cqu", ["trainer: ", "cqu"]),
        ("+trainer.logger", "true", ["'trainer.logger' is set by this package", "create_tensorboard_logger"]),
        ("model.optimizer.lr", "abc", ["'model.optimizer.lr' must be a number, found 'abc'"]),
        ("+model.optimizer.wieght_decay", 0.1, ["unknown key", "Did you mean 'weight_decay'?"]),
        ("model.optimizer._target_", "torch.optim.AdmW", ["Did you mean 'torch.optim.AdamW'?"]),
        ("model.lr_scheduler.min_lr", "low", ["'model.lr_scheduler.min_lr' must be a number, found 'low'"]),
        ("model.lr_scheduler.warmup_steps", "soon", ["model.lr_scheduler", "warmup_steps='soon'"]),
        ("model.perception.use", "[wisper]", ["model.perception.use names 'wisper'", "Did you mean 'whisper'?"]),
        ("model.perception.encoders.whisper.layer_ids", "[9]", ["encoders.whisper", "layer_ids [9]", "1 to 3"]),
        ("model.perception.projector.tokens_per_second", "fast", ["tokens_per_second must be a number", "'fast'"]),
        ("model.llm.attn_implementation", "fast", ["'model.llm.attn_implementation' is 'fast'"]),
        ("model.cross_entropy", "fast", ["model.cross_entropy must be auto, liger or torch, found 'fast'"]),
        ("data.train_ds.input_cfg", "none.yaml", ["'data.train_ds.input_cfg': no file 'none.yaml'"]),
        ("data.train_ds.input_cfg", "[rows.jsonl]", ["'data.train_ds.input_cfg' must be a list of mappings"]),
        ("exp_manager.checkpoint_callback_params", "soon", ["checkpoint_callback_params' must be a mapping"]),
        ("model.llm.lora", "{target_modules: [x]}", ["model.llm.lora", "linear layers of this LLM: down_proj"]),
        ("model.llm.path", "nollm", ["model.llm.path: no folder 'nollm'", "owner/name"]),
        ("callbacks.nan_patience", "x", ["'callbacks.nan_patience' must be a whole number"]),
        ("+exp_manager.expdir", "x", ["unknown key 'exp_manager.expdir'", "Did you mean 'exp_dir'?"]),
        ("exp_manager.checkpoint_callback_params.mode", "mn", ["checkpoint_callback_params", "got mn"]),
        ("data.train_ds.batch_tokens", 10, ["none of 40 rows can be used: 40 too_long", "raise batch_tokens"]),
        ("data.train_ds.input_cfg", "[{rows: 5}]", ["'data.train_ds.input_cfg.0.rows' must be text", "found 5"]),
        ("data.audio_roots", "x", ["'data.audio_roots' must be a mapping"]),
        ("seed", "x", ["'seed' must be a whole number"]),
        ("check_rate", "0", ["'check_rate' must be hours of audio per GPU-hour"]),
        ("resume", "often", ["'resume' must be one of auto, force"]),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(workplace, setting, value, parts):
    line = refused(workplace, **{setting: value})
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["data.train_ds: no rows in bad"]),
        ("id,audio\n" + "x,a.wav\n" * 3, ["none of 4 rows can be used: 4 not_json", "bad.csv:1", "lines of JSON"]),
    ],
)
def test_empty_rows_and_a_csv_are_refused(workplace, content, parts):
    path = workplace.folder / "rows" / "bad.csv"
    path.write_text(content)
    line = refused(workplace, **{ROWS: path})
    assert all(part in line for part in parts), line


def test_an_audio_root_without_the_clips_is_refused(workplace, tmp_path):
    line = refused(workplace, **{"data.audio_roots.default": tmp_path})
    assert "none of 40 rows can be used: 40 not_found" in line and str(tmp_path) in line


def test_many_devices_are_refused_here_and_checked_for_elsewhere(workplace, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cluster = {"trainer.accelerator": "auto", "trainer.devices": 8, "strategy": "ddp"}
    line = refused(workplace, **cluster)
    assert "'trainer.devices' is 8 but this machine has no GPU" in line and "check=elsewhere" in line
    few = {"data.train_ds.max_batch_size": 2, "trainer.accumulate_grad_batches": 2}
    said = report(workplace, capsys, **cluster, **few, check="elsewhere")
    assert "2 rows or 8192 tokens at most, x 8 processes x 2 accumulated" in said["batch"]
    assert said["steps"].startswith("14 of 2 per epoch: 7.0 epochs")
    assert said["strategy"] == "ddp, 8 devices, 1 nodes"
    assert "computed, assuming MFU 0.35 of h100 (989 TFLOP/s); check_rate=<measured>" in said["time"]


def test_the_report_says_what_a_run_reads_trains_and_takes(workplace, capsys):
    valid = workplace.folder / "valid"
    validation = (
        f"{{demo: {{input_cfg: [{{type: desta, rows: {valid}/rows.jsonl, audio_roots: {{default: {valid}}}}}]}}}}"
    )
    more = {"check_rate": 10, "+data.validation_ds.datasets": validation, "model.llm.lora": "{r: 4}"}
    said = report(workplace, capsys, **more)
    rows = [json.loads(line) for line in (workplace.folder / "rows" / "rows.jsonl").read_text().splitlines()]
    secs = sum(audio["duration"] for row in rows for m in row["messages"] for audio in m.get("audios") or ())
    assert said["data"].startswith("demo: 5 rows")
    assert said["LoRA"] == "r=4: 1,280 trainable parameters"
    assert said["projector"].endswith("3,910 trainable parameters")
    assert sum(int(size.replace(",", "")) for size in re.findall(r" ([\d,]*\d)", said["parts"])) == 3_910
    assert said["steps"].startswith("14 of 10 per epoch: 1.4 epochs")
    assert said["learning rate"].endswith("warm-up 2 steps (14.3% of the run)") and said["learning rate"][:4] == "0.01"
    assert f"{secs / 3600 * 1.4 / 10:.1f} GPU-hours" in said["time"]
    assert "GiB weights and optimiser" in said["memory"]
    assert re.match(r"\d+\.\d MFLOP \(LLM \d.*%, encoders \d.*%, projector \d.*%\) per step", said["compute"])
    assert said["note"] == "the rows are validated every 100 batches: not in this run"
    rare = {"exp_manager.checkpoint_callback_params.every_n_train_steps": 1000}
    said = report(workplace, capsys, **rare)
    assert said["note"] == "checkpoints are saved every 1,000 steps: none before the end of this run"
    assert "time" not in said  # on a CPU


def test_an_encoder_that_needs_numbers_leaves_the_rest_of_the_check_as_it_is(workplace, capsys, monkeypatch):
    def needs_numbers(*_):
        raise RuntimeError("no\nnumbers")

    monkeypatch.setattr("nemo_desta.training.check_report.dry_run", needs_numbers)
    said = report(workplace, capsys)
    assert said["compute"] == "not known: a dry run of encoders and projector failed: no numbers"
    assert "memory" in said


def with_bad(workplace, num_bad, num_good=40):
    path = workplace.folder / "rows" / f"bad_{num_bad}.jsonl"
    lines = (workplace.folder / "rows" / "rows.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:num_good]) + '{"id": "cut\n' * num_bad)
    return path


def test_bad_rows_that_training_tolerates_are_named_and_more_are_refused(workplace, capsys):
    said = report(workplace, capsys, **{ROWS: with_bad(workplace, 1)})
    assert "training: 2.4%, which training skips: 1 not_json, such as" in said["bad rows"]
    assert "bad_1.jsonl:41 (not a JSON object" in said["bad rows"]
    line = refused(workplace, **{ROWS: with_bad(workplace, 22)})
    assert "22 of 62 rows cannot be used (35.5%; the limit is 5.0%, data.bad_rows.max_share)" in line
    one_epoch = {ROWS: with_bad(workplace, 5), "trainer.max_steps": 9}
    assert "5 not_json" in report(workplace, capsys, **one_epoch)["bad rows"]
    assert "5 of 45 rows" in refused(workplace, **{**one_epoch, "trainer.max_steps": 60})  # counted in each epoch


def test_a_share_of_bad_clips_is_estimated_from_those_that_were_opened(workplace):
    found = Rows("data.train_ds", rows=10_000, read=10_000, opened=32)
    found.bad_audio["not_found"], found.examples["not_found"] = 32, "x:1 (no file)"
    with pytest.raises(ValueError, match=r"10,000 of 10,000 rows cannot be used \(100.0%"):
        refuse_bad_rows(found, BadRowSettings(), 1.0)


def test_of_many_rows_a_sample_is_read_and_scaled_up(tmp_path, monkeypatch):
    tiny_rows(tmp_path, 40)
    (tmp_path / "many.jsonl").write_text((tmp_path / "rows.jsonl").read_text() * 3)
    section = {"input_cfg": [{"rows": str(tmp_path / "many.jsonl")}], "max_batch_size": 4}
    data = {"train_ds": section, "audio_roots": {"default": str(tmp_path)}}

    def checked():
        prompts = PromptBuilder(tiny_tokenizer())
        return check_data(data, prompts, lambda n: n // 1000, sampling_rate=16_000, num_ranks=1)[0]

    whole = checked()
    monkeypatch.setattr("nemo_desta.training.check_data.READ_ROWS", 60)
    sample = checked()
    assert (whole.rows, whole.read, sample.rows, sample.read) == (120, 120, 120, 60)
    assert (whole.batches, sample.batches) == (30, 30)
    assert sample.secs == pytest.approx(whole.secs, rel=0.15) and sample.tokens == pytest.approx(
        whole.tokens, rel=0.15
    )
    assert "(60 of them read, spread evenly)" in str(sample)


def test_an_empty_mapping_on_the_command_line_empties_the_mapping(workplace):
    cfg = workplace.config("emptied", "+data.validation_ds.datasets.a.input_cfg=[]")
    assert with_empty(cfg, ["data.validation_ds.datasets={}"]).data.validation_ds.datasets == {}
    assert "a" in cfg.data.validation_ds.datasets
    later = ["data.validation_ds.datasets={}", "+data.validation_ds.datasets.b.input_cfg=[]", "seed=3"]
    assert with_empty(cfg, later).data.validation_ds.datasets == {"b": {"input_cfg": []}}
