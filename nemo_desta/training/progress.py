"""How far a run is: a bar in a terminal, and otherwise a line from time to time. Both know the total and the end."""

import logging
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECS = 30  # between two lines, where there is no terminal


class RunProgress(Callback):
    """Shows steps done of all, epoch, loss and throughput.

    It replaces Lightning's bar, which counts batches of an epoch and knows no end of this package's loaders.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._validation: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.total = trainer.max_steps if trainer.max_steps > 0 else None
        self._begun, self._begun_at, self._said = trainer.global_step, time.monotonic(), time.monotonic()
        if sys.stderr.isatty():
            form = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}, {remaining} left, {rate_fmt}{postfix}]"
            self._bar = tqdm(total=self.total, initial=self._begun, desc="training", bar_format=form, unit=" steps")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(trainer), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif now - self._said >= LINE_SECS:
            self._said = now
            logger.info("step %s, %s%s", self._of_all(trainer), self._numbers(trainer), self._left(trainer, now))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and sys.stderr.isatty():
            sizes = [size for size in trainer.num_val_batches if size != float("inf")]
            total = int(sum(sizes)) if len(sizes) == len(trainer.num_val_batches) else None
            self._validation = tqdm(total=total, desc="validation", unit=" batches", leave=False)

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
            with tqdm.external_write_mode(file=sys.stderr):
                logger.info("step %s: %s", self._of_all(trainer), named)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for bar in (self._validation, self._bar):
            if bar is not None:
                bar.close()
        self._validation = self._bar = None

    def _of_all(self, trainer: Trainer) -> str:
        total = getattr(self, "total", None)
        return f"{trainer.global_step} of {total}" if total else str(trainer.global_step)

    def _numbers(self, trainer: Trainer) -> str:
        shown = {"epoch": trainer.current_epoch, **trainer.progress_bar_metrics}
        shown.pop("v_num", None)
        return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())

    def _left(self, trainer: Trainer, now: float) -> str:
        done = trainer.global_step - self._begun
        if self.total is None or done == 0:
            return ""
        secs = (now - self._begun_at) / done * (self.total - trainer.global_step)
        return f", about {duration(secs)} left"


def duration(secs: float) -> str:
    """``90`` -> ``2 min``; ``5400`` -> ``1.5 h``; ``200000`` -> ``2.3 days``."""
    if secs < 3600:
        return f"{max(1, round(secs / 60))} min"
    return f"{secs / 3600:.1f} h" if secs < 48 * 3600 else f"{secs / 86400:.1f} days"
