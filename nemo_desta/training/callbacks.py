"""Callbacks of a run: throughput, NaN guard, graceful stop on a signal, seeds, step log, sample answers."""

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nemo_desta.types import AUDIO_SLOT

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal stopped the training after its state was saved. ``by_user``: it was Ctrl-C."""

    def __init__(self, message: str, *, by_user: bool = False) -> None:
        super().__init__(message)
        self.by_user = by_user


class NotFinite(RuntimeError):
    """Too many consecutive steps had NaN or infinite gradients."""


def records_folder(log_dir: str | Path) -> Path:
    """Folder for files that a resumed run appends to; exp_manager moves files of the log dir itself away."""
    return Path(log_dir) / "records"


class StepSeed(Callback):
    """Seeds every step from (seed, step, rank), so that a resumed run has the dropout of an uninterrupted run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        torch.manual_seed((self.seed * 1_000_003 + done) * 4_099 + trainer.global_rank)


class StepLog(Callback):
    """Appends one JSON line per micro-batch to ``<log dir>/records/steps.jsonl``: batch, step, loss, rows.

    After a resume, lines beyond the checkpoint are removed, so the file always shows one uninterrupted run. A model
    that runs a whole accumulation window at its end reports its micro-batches' losses then.
    """

    def __init__(self, name: str = "steps.jsonl") -> None:
        self.name = name
        self._file: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        path = records_folder(trainer.default_root_dir) / self.name  # exp_manager puts its log dir there
        path.parent.mkdir(parents=True, exist_ok=True)
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        path.touch()
        kept = path.read_bytes().splitlines(keepends=True)[:done]
        os.truncate(path, sum(len(line) for line in kept if line.endswith(b"\n")))  # a kill here loses no line
        self._file = path.open("a", buffering=1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._file is None:
            return
        ready = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        for number, (rows, loss) in enumerate(pl_module.step_losses, 1):
            before = len(pl_module.step_losses) - number
            step = trainer.global_step - (before > 0)  # only the last micro-batch is followed by the optimiser
            line = {"batch": ready - before, "step": step, "loss": float(loss), "rows": list(rows)}
            self._file.write(json.dumps(line) + "\n")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class LastValidation(Callback):
    """Keeps the metrics of the last validation over a resume, so that the best checkpoint is chosen as without it."""

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: torch.tensor(value, device=pl_module.device) for name, value in self._metrics.items()}
        trainer._logger_connector._callback_metrics.update(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics = state_dict["metrics"]


class Throughput(Callback):
    """Logs audio-hours per GPU-hour, tokens per second and the share of padding, over the last ``window`` steps."""

    def __init__(self, window: int = 20) -> None:
        self.window = window
        self._reset()

    def _reset(self) -> None:
        self._steps, self._secs, self._audio_secs, self._tokens, self._positions = 0, 0.0, 0.0, 0, 0

    def on_train_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._secs += time.perf_counter() - self._started
        self._audio_secs += batch["audio_lens"].sum().item() / pl_module.sampling_rate
        self._tokens += pl_module.read_positions[0]
        self._positions += pl_module.read_positions[1]
        self._steps += 1
        if self._steps == self.window:
            metrics = {
                "audio_h_per_gpu_h": self._audio_secs / self._secs / pl_module.ranks_per_batch,
                "tokens_per_s": self._tokens / self._secs,
                "padding_share": 1 - self._tokens / max(1, self._positions),
            }
            pl_module.log_dict(metrics, prog_bar=True, batch_size=1)
            pl_module.log("audio_secs", self._audio_secs / self._steps, batch_size=1)  # per batch
            if torch.cuda.is_available():
                pl_module.log("gpu_memory_gib", torch.cuda.max_memory_allocated() / 2**30, batch_size=1)
            self._reset()


class NaNGuard(Callback):
    """Skips an optimiser step with NaN or infinite gradients and names its rows; ``patience`` in a row end the run."""

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self._in_a_row = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = [grad.isfinite().all() for grad in grads]
        # A rank without gradients (a later pipeline stage) also takes part in the all-reduce.
        bad = ~torch.stack(finite).all() if finite else torch.tensor(False, device=pl_module.device)
        if not _on_any_rank(bad):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        rows = ", ".join(pl_module.window.row_ids[:16])
        logger.error("step %d: gradients are not finite, step skipped. Rows: %s", trainer.global_step, rows)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if self._in_a_row >= self.patience:
            raise NotFinite(f"{self._in_a_row} steps in a row without finite gradients; last rows: {rows}")


class GracefulStop(Callback):
    """On SIGTERM or Ctrl-C: finish the step, save a last checkpoint, raise `Stopped`. A second signal ends at once."""

    def __init__(self) -> None:
        self._asked: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._previous = {which: signal.signal(which, self._handle) for which in (signal.SIGTERM, signal.SIGINT)}

    def _handle(self, signum: int, frame: Any) -> None:
        self._asked = signal.Signals(signum)
        self._put_back()
        if self._asked is signal.SIGINT:
            os.write(2, b"\nstopping after this step, to save it; Ctrl-C again stops at once\n")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not _on_any_rank(torch.tensor(self._asked is not None, device=pl_module.device)):
            return
        for checkpoint in trainer.checkpoint_callbacks:
            checkpoint._save_last_checkpoint(trainer, checkpoint._monitor_candidates(trainer))
        asked = self._asked or signal.SIGTERM  # another rank was asked
        raise Stopped(f"{asked.name} at step {trainer.global_step}", by_user=asked is signal.SIGINT)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for which, handler in self._previous.items():
            signal.signal(which, handler)
        self._previous = {}


class SampleAnswers(Callback):
    """Logs the model's answers to the first rows of every validation dataset."""

    def __init__(self, num_rows: int = 2, max_new_tokens: int = 64) -> None:
        self.num_rows = num_rows
        self.max_new_tokens = max_new_tokens

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx > 0 or trainer.sanity_checking or self.num_rows == 0 or not pl_module.writes_samples:
            return
        prompt = first_prompts(batch, self.num_rows)
        ids = pl_module.write(prompt, max_new_tokens=self.max_new_tokens)
        if not trainer.is_global_zero:
            return
        for row, tokens in enumerate(ids):
            start, end = batch["prompt_lens"][row], batch["input_lens"][row]
            wanted = pl_module.tokenizer.decode(batch["input_ids"][row, start:end], skip_special_tokens=True)
            written = pl_module.tokenizer.decode(tokens, skip_special_tokens=True)
            logger.info("%s\n  target: %s\n  answer: %s", batch["row_ids"][row], wanted, written)


def first_prompts(batch: dict[str, Any], num_rows: int) -> dict[str, torch.Tensor]:
    """The first rows of a batch without their targets."""
    lens = batch["prompt_lens"][:num_rows]
    ids = batch["input_ids"][:num_rows, : int(lens.max())].clone()
    ids[torch.arange(ids.shape[1], device=ids.device) >= lens[:, None]] = 0
    num_clips = int((ids == AUDIO_SLOT).sum())
    clips = {name: batch[name][:num_clips] for name in ("audio", "audio_lens", "vector_lens") if name in batch}
    return {**clips, "input_ids": ids, "input_lens": lens, "prompt_lens": lens}


def _on_any_rank(flag: torch.Tensor) -> bool:
    """Whether a boolean scalar is true on any rank; every rank must call this."""
    found = flag.to(torch.int32)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)
