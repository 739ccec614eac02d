"""How far a training is: steps of all, tokens per second, epoch, loss. Each validation shows its own progress."""

import logging
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nemo_desta.progress import Progress, above_bars

logger = logging.getLogger(__name__)


class RunProgress(Callback):
    """Shows steps done of all, tokens per second, epoch, loss and throughput, in the first process.

    It replaces Lightning's bar, which counts batches of an epoch and knows no end of this package's loaders.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._validation: Progress | None = None
        self._tokens = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = Progress("training", total, unit="steps", tokens=lambda: self._tokens)
            self._bar.skip(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._bar is not None:
            self._tokens += pl_module.read_positions[0]
            if self._bar.due:  # the metrics are on the GPU
                self._bar.note = _numbers(trainer)
            self._bar.update(trainer.global_step - self._bar.done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.note = _numbers(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            sizes = [size for size in trainer.num_val_batches if size != float("inf")]
            total = int(sum(sizes)) if len(sizes) == len(trainer.num_val_batches) else None
            self._validation = Progress("validation", total, unit="batches", leave=False)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._validation is not None:
            self._validation.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._validation is not None:
            self._validation.close()
            self._validation = None
        if trainer.is_global_zero and not trainer.sanity_checking and "val_loss" in trainer.callback_metrics:
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
            named = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            of_all = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
            with above_bars():
                logger.info("step %d%s: %s", trainer.global_step, of_all, named)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for bar in (self._validation, self._bar):
            if bar is not None:
                bar.close()
        self._validation = self._bar = None


def _numbers(trainer: Trainer) -> str:
    shown = {"epoch": trainer.current_epoch, **trainer.progress_bar_metrics}
    for name in ("v_num", "tokens_per_s"):  # the bar has its own tokens per second
        shown.pop(name, None)
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
