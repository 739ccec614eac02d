"""Started by torchrun from test_ddp.py: trains the recorder on every rank and writes down what each step was given."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from nemo_desta.data.datamodule import DestaDataModule
from nemo_desta.testing.data import tiny_tokenizer


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.batches.append(batch["row_ids"])
        return (self.weight - batch["input_lens"].float().mean() / 100) ** 2

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated += batch["row_ids"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(folder: Path, name: str, resume: str | None) -> None:
    source = {"input_cfg": [{"type": "desta", "rows": str(folder / "rows.jsonl")}], "batch_tokens": 400}
    cfg = {
        "train_ds": {**source, "max_batch_size": 3, "bucket_buffer_size": 10, "num_workers": 0},
        "validation_ds": {"datasets": {"all": source}, "num_workers": 0},
    }
    model, data = Recorder(), DestaDataModule(cfg, tiny_tokenizer(), lambda n: -(-n // 2560))
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        callbacks=[ModelCheckpoint(folder / name, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, data, ckpt_path=resume)
    seen = {"batches": model.batches, "validated": model.validated, "weight": model.weight.item()}
    (folder / f"{name}.{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
