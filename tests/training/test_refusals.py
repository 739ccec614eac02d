"""What a resume refuses or sets aside: damaged checkpoints, other settings, a folder that another process has."""

import json
import logging
import multiprocessing
import shutil

import pytest
import torch

from nemo_desta.errors import ConfigError
from nemo_desta.training.check_settings import check_trainer
from nemo_desta.training.checkpoints import NoWholeCheckpoint, find_checkpoint
from nemo_desta.training.fit import build_trainer, fit
from nemo_desta.training.run_lock import FolderInUse, run_lock
from nemo_desta.training.run_settings import RunSettings, SettingsChanged, compare_run, describe_run

TINY = {"trainer.max_steps": 3, "callbacks.sample_rows": 0, "exp_manager.create_tensorboard_logger": "false"}
pytestmark = pytest.mark.filterwarnings("ignore:`trainer.ckpt_path")


def save(folder, name, step):
    from nemo_desta.training.checkpoint_io import SafeCheckpointIO

    state = {"weight": torch.full((500,), float(step)), "other": torch.arange(500)}
    SafeCheckpointIO().save_checkpoint({"global_step": step, "state_dict": state}, folder / name)
    return folder / name


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte_of_a_weight(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((500,), 14.0).numpy().tobytes()) + 900] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, zeros, half, flip_a_byte_of_a_weight])
def test_a_damaged_last_checkpoint_is_named_and_set_aside_and_the_older_one_is_used(tmp_path, caplog, damage):
    save(tmp_path, "step=12.ckpt", 12)
    last = save(tmp_path, "step=14-last.ckpt", 14)
    damage(last)
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(tmp_path, tidy=True)
    assert (found.path.name, found.step) == ("step=12.ckpt", 12)
    assert f"'{last}' is damaged" in caplog.text and "step=14-last.ckpt.damaged" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step=12.ckpt", "step=14-last.ckpt.damaged"]


def test_of_two_last_checkpoints_the_newer_one_is_used(tmp_path):
    save(tmp_path, "step=9-last.ckpt", 9)
    save(tmp_path, "step=12-last.ckpt", 12)
    assert find_checkpoint(tmp_path, tidy=True).step == 12
    assert [path.name for path in tmp_path.iterdir()] == ["step=12-last.ckpt"]


def test_a_doubled_last_checkpoint_whose_newer_one_is_damaged_leaves_the_older_one(tmp_path):
    save(tmp_path, "step=9-last.ckpt", 9)
    cut(save(tmp_path, "step=12-last.ckpt", 12))
    assert find_checkpoint(tmp_path, tidy=True).step == 9


def test_what_a_kill_leaves_of_a_save_does_not_count(tmp_path):
    save(tmp_path, "step=3-last.ckpt", 3)
    (tmp_path / "step=3-last-unfinished").touch()  # NeMo's mark; it would refuse the run
    (tmp_path / "step=6-last.ckpt.part").write_bytes(b"half")
    assert find_checkpoint(tmp_path, tidy=True).step == 3
    assert [path.name for path in tmp_path.iterdir()] == ["step=3-last.ckpt"]


def test_no_whole_checkpoint_is_an_error_that_names_each_and_the_files_stay(tmp_path):
    for step in (9, 12):
        cut(save(tmp_path, f"step={step}-last.ckpt", step))
    for _ in range(2):
        with pytest.raises(NoWholeCheckpoint, match="(?s)step=12-last.ckpt.*step=9-last.ckpt.*begin anew"):
            find_checkpoint(tmp_path, tidy=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_that_would_run_code_is_refused_and_not_set_aside(tmp_path):
    save(tmp_path, "step=3.ckpt", 3)
    torch.save({"global_step": 5, "x": print}, tmp_path / "step=5-last.ckpt")
    with pytest.raises(ValueError, match="step=5-last.ckpt' is refused: it holds more than"):
        find_checkpoint(tmp_path, tidy=True)
    assert (tmp_path / "step=5-last.ckpt").exists()


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert find_checkpoint(tmp_path, tidy=True) is None
    assert find_checkpoint(tmp_path / "none", tidy=True) is None


def described(workplace, run="x", **more):
    from omegaconf import OmegaConf

    from nemo_desta.config import ModelConfig, parse

    settings = OmegaConf.to_container(workplace.config(run, **more), resolve=True)
    return describe_run(parse(ModelConfig, settings["model"]), settings)


@pytest.fixture(scope="module")
def before(workplace):
    return described(workplace)


def test_fastest_is_compared_by_what_it_is_on_this_machine(workplace, monkeypatch):
    from nemo_desta.ops import dtypes

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for found in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(dtypes, "_fastest", lambda found=found: found)
        name = str(found).removeprefix("torch.")
        changed = {"model.llm.dtype": "fastest", "model.perception.dtype": "fastest"}
        described_now = described(workplace, **changed)
        assert [described_now[key] for key in changed] == [name, name]
    before = {**described_now, "model.llm.dtype": "bfloat16"}
    with pytest.raises(SettingsChanged, match='model.llm.dtype: "bfloat16" -> "float32"'):
        compare_run(before, described_now, force=False)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.optimizer.lr", 0.5, "model.optimizer.lr: 0.01 -> 0.5"),
        ("model.perception.normalize_dbfs", -20, "model.perception.normalize_dbfs: null -> -20.0"),
        ("trainer.gradient_clip_val", 3.0, "trainer.gradient_clip_val: 1.0 -> 3.0"),
        ("trainer.accumulate_grad_batches", 2, "trainer.accumulate_grad_batches: 1 -> 2"),
        ("trainer.precision", "bf16-mixed", "trainer.precision: "),
        ("data.train_ds.max_batch_size", 3, "data.train_ds.max_batch_size: 4 -> 3"),
        ("+model.prompt.chat_template_kwargs.enable_thinking", "false", "enable_thinking: null -> false"),
        ("seed", 7, "seed: 42 -> 7"),
        ("trainer.max_steps", 20, "model.lr_scheduler.max_steps=14"),
    ],
)
def test_a_setting_that_changes_the_numbers_is_named_and_refused(workplace, before, key, value, named):
    now = described(workplace, **{key: value})
    with pytest.raises(SettingsChanged) as caught:
        compare_run(before, now, force=False)
    assert named in str(caught.value) and "resume=force" in str(caught.value)
    assert compare_run(before, now, force=True)


@pytest.mark.parametrize(
    "more",
    [
        {"data.train_ds.num_workers": 3},
        {"trainer.max_steps": 20, "model.lr_scheduler.max_steps": 14},
        {"trainer.devices": 2, "strategy": "fsdp2"},
        {"trainer.limit_val_batches": 2, "trainer.log_every_n_steps": 1},
    ],
)
def test_a_setting_that_changes_no_number_is_only_logged(workplace, before, caplog, more):
    with caplog.at_level(logging.INFO):
        assert compare_run(before, described(workplace, **more), force=False) == []
    assert f"{next(iter(more)).split('.')[-1]}" in caplog.text


def test_rows_that_moved_are_the_same_and_edited_or_reordered_ones_are_not(workplace, before, tmp_path):
    rows = workplace.folder / "rows" / "rows.jsonl"
    moved = shutil.copy(rows, tmp_path / "moved.jsonl")
    key = "data.train_ds.input_cfg.0.rows"
    assert compare_run(before, described(workplace, **{key: moved}), force=False) == []
    lines = rows.read_text().splitlines(keepends=True)
    edited = [lines[0].replace("I hear", "I hate"), *lines[1:]]
    for name, changed in (("reordered", lines[::-1]), ("edited", edited)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(changed))
        with pytest.raises(SettingsChanged, match="data.train_ds.input_cfg.0.rows: .*sha256"):
            compare_run(before, described(workplace, **{key: path}), force=False)


def test_a_checkpoint_of_an_earlier_version_resumes_with_a_word(before, caplog):
    with caplog.at_level(logging.INFO):
        assert compare_run(RunSettings.read({"callbacks": {}}), before, force=False) == []
    assert "not compared" in caplog.text


def test_a_resume_with_another_learning_rate_is_refused_and_forced_it_takes_effect(workplace):
    fit(workplace.config("rate", **TINY))
    more = {**TINY, "trainer.max_steps": 5, "model.lr_scheduler.max_steps": 3}
    with pytest.raises(SettingsChanged, match="model.optimizer.lr: 0.01 -> 0.5"):
        fit(workplace.config("rate", **more, **{"model.optimizer.lr": 0.5}))
    new = {"model.optimizer.lr": 0.5, "model.lr_scheduler.max_steps": 5, "model.optimizer.weight_decay": 0.2}
    model = fit(workplace.config("rate", **{**more, **new, "resume": "force"}))
    group = model.trainer.optimizers[0].param_groups[0]
    scheduler = model.trainer.lr_scheduler_configs[0].scheduler
    assert (group["initial_lr"], group["weight_decay"]) == (0.5, 0.2)
    assert (scheduler.base_lrs, scheduler.max_steps, scheduler.last_epoch) == ([0.5], 5, 5)
    assert [line["step"] for line in workplace.steps("rate")] == [1, 2, 3, 4, 5]


def hold(folder, held, done):
    with run_lock(folder):
        held.set()
        done.wait(60)


def test_a_second_process_in_one_folder_is_refused_and_a_death_frees_it(workplace):
    records = workplace.folder / "shared" / "desta25" / "records"
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(records, held, done))
    process.start()
    assert held.wait(60)
    with pytest.raises(FolderInUse, match=f"another process trains into .*shared/desta25: process {process.pid} on"):
        fit(workplace.config("shared", **TINY))
    process.kill()
    process.join()
    fit(workplace.config("shared", **TINY))
    assert json.loads((records.parent / "model" / "training.json").read_text())["steps"] == 3


def test_a_run_whose_last_checkpoint_is_damaged_resumes_from_an_older_one_to_the_same_losses(workplace):
    saving = {"exp_manager.checkpoint_callback_params.every_n_train_steps": 1, "model.lr_scheduler.max_steps": 4}
    more = {**TINY, **saving, "exp_manager.checkpoint_callback_params.monitor": "loss"}
    fit(workplace.config("damaged", **more))
    fit(workplace.config("undamaged", **{**more, "trainer.max_steps": 4}))
    checkpoints = workplace.folder / "damaged" / "desta25" / "checkpoints"
    half(checkpoints / "step=3-last.ckpt")
    strict = {"exp_manager.resume_ignore_no_checkpoint": "false"}
    fit(workplace.config("damaged", **{**more, "trainer.max_steps": 4, **strict}))
    assert workplace.steps("damaged") == workplace.steps("undamaged")
    assert (checkpoints / "step=3-last.ckpt.damaged").exists()


def test_epochs_as_the_end_of_a_run_need_to_say_when_to_validate():
    with pytest.raises(ConfigError, match="max_epochs needs trainer.check_val_every_n_epoch"):
        check_trainer({"max_epochs": 3, "check_val_every_n_epoch": None})
    check_trainer({"max_epochs": 3, "check_val_every_n_epoch": 1})
    assert build_trainer({"max_epochs": 3, "check_val_every_n_epoch": 1}, None, seed=0).max_epochs == 3
