"""A chat template that writes today's date writes the one on which the run began, also after a resume."""

import logging
from datetime import datetime

import pytest
import torch
from lightning import Trainer
from transformers import AutoTokenizer

from nemo_desta.data.datamodule import DestaDataModule
from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.data import TEMPLATES, tiny_rows
from nemo_desta.testing.models import tiny_config
from nemo_desta.training.checkpoint_io import SafeCheckpointIO


@pytest.fixture
def config(tmp_path):
    config = tiny_config(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llm")
    tokenizer.chat_template = "Today: {{ strftime_now('%d %b %Y') }}\n" + TEMPLATES["chatml"]
    tokenizer.save_pretrained(tmp_path / "llm")
    return config | {"lr_scheduler": {"_target_": "nemo.core.optim.lr_scheduler.CosineAnnealing", "max_steps": 10}}


def fit(config, rows, steps, **resume):
    torch.manual_seed(0)
    model = DestaModel(config)
    data = DestaDataModule(
        {
            "train_ds": {"input_cfg": [{"type": "desta", "rows": str(rows)}], "num_workers": 0, "max_batch_size": 2},
            "audio_roots": {"default": str(rows.parent)},
        },
        prompts=model.prompts,
        num_audio_tokens=model.num_audio_tokens,
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=steps, devices=1, plugins=[SafeCheckpointIO()], use_distributed_sampler=False, **quiet)
    trainer.fit(model, datamodule=data, **resume)
    return model, trainer


def test_a_resumed_run_writes_the_date_of_its_beginning(config, tmp_path, caplog):
    rows = tiny_rows(tmp_path / "rows", 8)
    with caplog.at_level(logging.INFO):
        model, trainer = fit(config, rows, 1)
    assert model.prompts.date.date() == datetime.now().date() and "the chat template writes the date" in caplog.text
    model.prompts.freeze_date(datetime(2020, 2, 1, 23, 59))  # as if it had begun then
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, _ = fit(config, rows, 2, ckpt_path=tmp_path / "last.ckpt")
    asked = [{"role": "user", "content": "Hi."}]
    assert resumed.prompts.render(asked).startswith("Today: 01 Feb 2020<")
    assert DestaModel(config).prompts.render(asked).startswith(f"Today: {datetime.now():%d %b %Y}<"), (
        "a chat's is today"
    )
