"""A run resumed from any of its checkpoints trains on the same rows, in the same steps, as if it had never stopped."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from nemo_desta.core.prompting import PromptBuilder  # noqa: E402
from nemo_desta.data.datamodule import DestaDataModule  # noqa: E402
from nemo_desta.testing.data import tiny_row, tiny_rows, tiny_tokenizer, write_jsonl  # noqa: E402

NUM_ROWS = 20  # 7 batches per epoch

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Recorder(lightning.LightningModule):
    """One parameter that depends on the order of everything; notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[str, ...]] = []
        self.step_ends: list[int] = []  # batches seen when the optimiser stepped
        self.epoch_ends: list[int] = []  # steps done when an epoch ended
        self.validations: list[int] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.batches.append(tuple(batch["row_ids"]))
        return (self.weight - batch["input_lens"].float().mean() / 100) ** 2

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.step_ends.append(len(self.batches))

    def on_train_epoch_end(self) -> None:
        self.epoch_ends.append(self.global_step)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0:
            self.validations.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data_of(folder: Path, num_workers: int, with_validation: bool = False, **train: Any) -> DestaDataModule:
    cfg: dict[str, Any] = {
        "train_ds": {
            "input_cfg": [{"type": "desta", "rows": str(folder / "rows.jsonl")}],
            "batch_tokens": 400,
            "max_batch_size": 3,
            "bucket_buffer_size": 10,
            "num_workers": num_workers,
            **train,
        }
    }
    if with_validation:
        one = {"input_cfg": [{"type": "desta", "rows": str(folder / "rows.jsonl")}]}
        cfg["validation_ds"] = {"datasets": {"first": one, "second": one}, "batch_tokens": 4000, "num_workers": 0}
    return DestaDataModule(cfg, tiny_tokenizer(), lambda num_samples: -(-num_samples // 2560), log_dir=folder)


def trainer_of(checkpoints: Path, every: int = 2, **settings: Any) -> lightning.Trainer:
    keep_all = ModelCheckpoint(checkpoints, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    return lightning.Trainer(
        accelerator="cpu",
        callbacks=[keep_all],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"num_sanity_val_steps": 0, "limit_val_batches": 1, "devices": 1, **settings},
    )


def run(
    folder: Path, checkpoints: Path, resume: Path | None = None, num_workers: int = 0, **settings: Any
) -> Recorder:
    model, data = Recorder(), data_of(folder, num_workers, with_validation="val_check_interval" in settings)
    trainer_of(checkpoints, **settings).fit(model, data, ckpt_path=resume)
    return model


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("rows")
    tiny_rows(folder, NUM_ROWS)
    return folder


SETTINGS = {
    # steps of the checkpoints to resume from: mid-epoch, the last batch of an epoch, the first of the next
    "steps": ({"max_steps": 18}, 0, (4, 14, 16)),
    "two workers": ({"max_steps": 16}, 2, (4, 14)),
    "epochs": ({"max_epochs": 3}, 0, (6, 14)),
    "validation by steps": (
        {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
        0,
        (4, 6, 14),
    ),
    "validation by epochs": ({"max_epochs": 2, "val_check_interval": 1.0}, 0, (2, 7)),
    "accumulation": ({"max_epochs": 2, "accumulate_grad_batches": 3, "every": 1}, 0, (1, 2, 3, 4)),
    "limited epochs": ({"max_epochs": 4, "limit_train_batches": 5}, 0, (4, 14)),
    "limited epochs and accumulation": (
        {"max_epochs": 4, "limit_train_batches": 5, "accumulate_grad_batches": 2, "every": 1},
        0,
        (1, 3, 4),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_resume_is_exact(rows: Path, tmp_path: Path, name: str) -> None:
    settings, num_workers, steps = SETTINGS[name]
    if name == "validation by epochs":
        settings = {**settings, "every": 1}
    full = run(rows, tmp_path / "full", num_workers=num_workers, **settings)
    assert len(full.batches) >= 8  # more than an epoch
    for step in steps:
        resume = tmp_path / "full" / f"step={step}.ckpt"
        again = run(rows, tmp_path / f"from{step}", resume, num_workers, **settings)
        done = full.step_ends[step - 1]
        assert again.batches == full.batches[done:]
        assert [end + done for end in again.step_ends] == full.step_ends[step:]
        assert again.epoch_ends == [end for end in full.epoch_ends if end >= step]
        assert again.validations == [at for at in full.validations if at >= step]
        assert again.weight.item() == full.weight.item()


@pytest.mark.parametrize("step", [7, 14])
def test_a_save_of_a_monitored_metric_after_a_resume_from_the_end_of_an_epoch_needs_no_validation(
    rows: Path, tmp_path: Path, step: int
) -> None:
    settings = {"max_steps": 18, "every": 7, "val_check_interval": 100, "check_val_every_n_epoch": None}
    full = run(rows, tmp_path / "full", **settings)
    model, data = Recorder(), data_of(rows, 0, with_validation=True)
    trainer = trainer_of(tmp_path / "again", **settings)
    trainer.callbacks.append(ModelCheckpoint(tmp_path / "best", monitor="val_loss", every_n_train_steps=2))
    trainer.fit(model, data, ckpt_path=tmp_path / "full" / f"step={step}.ckpt")
    assert model.batches == full.batches[step:]
    assert model.weight.item() == full.weight.item()


def test_resume_trains_an_unfinished_accumulation_window_again(rows: Path, tmp_path: Path) -> None:
    settings = {
        "max_epochs": 2,
        "accumulate_grad_batches": 3,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
    }

    class SaveAtValidation(lightning.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Recorder) -> None:
            trainer.save_checkpoint(tmp_path / f"batch={len(pl_module.batches)}.ckpt")

    model, data = Recorder(), data_of(rows, 0, with_validation=True)
    trainer = trainer_of(tmp_path, **settings)
    trainer.callbacks.append(SaveAtValidation())
    trainer.fit(model, data)
    for num_batches in (2, 4, 8, 10):  # inside a window, one past it, first of an epoch, at the end of a window
        window_start = max([0, *(end for end in model.step_ends if end <= num_batches)])
        again = run(rows, tmp_path / "again", tmp_path / f"batch={num_batches}.ckpt", **settings)
        assert again.batches == model.batches[window_start:]
        assert again.weight.item() == model.weight.item()


def test_every_epoch_trains_on_every_row_once(rows: Path, tmp_path: Path) -> None:
    full = run(rows, tmp_path, max_epochs=2)
    half = len(full.batches) // 2
    for epoch in (full.batches[:half], full.batches[half:]):
        assert sorted(row for batch in epoch for row in batch) == [f"row-{i:03d}" for i in range(NUM_ROWS)]


def test_checkpoint_holds_only_plain_values_and_no_loader_state(rows: Path, tmp_path: Path) -> None:
    run(rows, tmp_path, max_steps=10)
    checkpoint = torch.load(tmp_path / "step=10.ckpt", weights_only=True)
    assert checkpoint["DestaDataModule"]["epoch"] == 1
    assert checkpoint["DestaDataModule"]["batches_done"] == 3
    json.dumps(checkpoint["DestaDataModule"])
    assert "combined_loader" not in checkpoint["loops"]["fit_loop"]["state_dict"]  # NeMo 2.7 could not load it


def test_a_resume_with_another_plan_trains_on_the_rest_of_the_epoch_once(
    rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = run(rows, tmp_path, max_steps=4).batches
    for seed, steps in ((9, 6), (10, 20)):  # the second resume has two plans before its own
        model, data = Recorder(), data_of(rows, 0, seed=seed, batch_tokens=300)
        last = max(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
        with caplog.at_level(logging.WARNING):
            trainer_of(tmp_path, max_steps=steps).fit(model, data, ckpt_path=last)
        seen = [*seen, *model.batches]
    assert "batch_tokens was 400, is 300; seed was 0, is 9" in caplog.text
    assert "seed was 9, is 10" in caplog.text
    order = [row for batch in seen for row in batch]
    assert (
        sorted(order[:NUM_ROWS]) == sorted(order[NUM_ROWS : 2 * NUM_ROWS]) == [f"row-{i:03d}" for i in range(NUM_ROWS)]
    )


def test_a_resume_with_other_rows_is_named(rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(rows, tmp_path, max_steps=4)
    fewer = tiny_rows(tmp_path / "fewer", NUM_ROWS - 1).parent
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, max_steps=6).fit(Recorder(), data_of(fewer, 0), ckpt_path=tmp_path / "step=4.ckpt")
    assert "this resume is not exact (rows was" in caplog.text
    assert "resuming at batch 4 of epoch 0" in caplog.text


def test_bad_rows_of_a_run_are_named_once_and_counted_exactly_after_a_resume(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 18)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[3]["messages"][-1]["audios"][0]["audio"] = "gone.wav"  # found when it is loaded: the row has its duration
    records[7] = {"id": "no messages"}  # found when the batches are planned
    write_jsonl(path, records)
    full = DestaDataModuleRun(tmp_path, "full")
    resumed = DestaDataModuleRun(tmp_path, "resumed", full.checkpoints / "step=4.ckpt")
    for result in (full, resumed):
        assert result.counts == {"num_rows": 2 * 18, "num_bad": 2 * 2}
    assert {(row["where"].rpartition(":")[2], row["reason"]) for row in full.listed} == {
        ("4", "not_found"),
        ("8", "schema"),
    }
    assert len(full.listed) == 2


class DestaDataModuleRun:
    """Two epochs over a folder; what the account of bad rows says at the end."""

    def __init__(self, folder: Path, name: str, resume: Path | None = None) -> None:
        data = data_of(folder, 0)
        data.log_dir = self.checkpoints = folder / name
        trainer_of(self.checkpoints, max_epochs=2).fit(Recorder(), data, ckpt_path=resume)
        self.counts = data.state_dict()["bad_rows"]
        self.listed = [json.loads(line) for line in (self.checkpoints / "bad_rows.jsonl").read_text().splitlines()]


def test_too_many_bad_rows_stop_the_fit(tmp_path: Path) -> None:
    from nemo_desta.data.bad_rows import TooManyBadRows

    write_jsonl(tmp_path / "rows.jsonl", [tiny_row(f"r{i}", "gone.wav") for i in range(30)])
    for i, row in enumerate(rows := [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]):
        row["messages"][-1]["audios"][0]["duration"] = 0.5 + i / 100
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(TooManyBadRows, match="20 of 20|21 of 21"):
        trainer_of(tmp_path, max_epochs=1).fit(Recorder(), data_of(tmp_path, 0))


def test_a_system_message_that_only_the_rows_have_is_a_warning(
    rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A chat with the trained model has no system message unless the model has one."""
    lines = [json.loads(line) for line in (rows / "rows.jsonl").read_text().splitlines()]
    for row in lines:
        row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    tokenizer = tiny_tokenizer()
    for system, warned in ((None, 1), ("Be brief.", 0)):
        caplog.clear()
        data = data_of(tmp_path, 0)
        data.prompts = PromptBuilder(tokenizer, system=system)
        data.train_dataloader()
        assert caplog.text.count("model.prompt.system='Be brief.'") == warned
