"""The Lightning data module: loaders from the config section ``data``, and a position that resumes exactly."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule
from omegaconf import DictConfig, OmegaConf

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.bad_rows import BadRowLog
from nemo_desta.data.costs import RowCosts
from nemo_desta.data.dataset import Batch, RowDataset
from nemo_desta.data.loader import PlanLoader, SizedPlanLoader
from nemo_desta.data.row_source import RowSource
from nemo_desta.data.sampler import BatchPlan, Begun, PlanSettings
from nemo_desta.data.settings import LoaderSettings, parse_data
from nemo_desta.data.sources import open_input_cfg
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.types import Rates, first_rate

logger = logging.getLogger(__name__)


class DestaDataModule(LightningDataModule):
    """Training and validation loaders over DeSTA rows.

    Args:
        cfg: the ``data`` section (see `nemo_desta.data.settings`).
        tokenizer: the LLM's; only needed without ``prompts``.
        num_audio_tokens: number of samples of a clip -> number of its audio vectors (``model.num_audio_tokens``).
        prompts: turns rows into ids (``model.prompts``).
        log_dir: where ``bad_rows.jsonl`` is written; without it bad rows are only logged.
        accumulate_grad_batches: batches per optimiser step, if the Trainer does not know (manual optimisation).
    """

    def __init__(
        self,
        cfg: Mapping[str, Any] | DictConfig,
        tokenizer: Any = None,
        num_audio_tokens: Callable[[int], int] | None = None,
        sampling_rate: Rates = 16_000,
        *,
        prompts: PromptBuilder | None = None,
        log_dir: str | Path | None = None,
        accumulate_grad_batches: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(cfg, DictConfig):
            cfg = OmegaConf.to_container(cfg, resolve=True)
        if num_audio_tokens is None or (tokenizer is None and prompts is None):
            raise TypeError("DestaDataModule needs num_audio_tokens, and prompts or a tokenizer")
        self.settings = parse_data(cfg)
        self.prompts = prompts or PromptBuilder(tokenizer)
        self.num_audio_tokens = num_audio_tokens
        self.sampling_rate = sampling_rate
        self.log_dir = Path(log_dir) if log_dir is not None else None
        self.accumulate_grad_batches = accumulate_grad_batches
        self._next = (0, 0)  # epoch and number of the first batch that no step has consumed
        self._in_step: tuple[int, int, bool] | None = None  # position of the batch that a step consumed last
        self._saved_plan: dict[str, Any] | None = None
        self._begun: list[dict[str, Any]] = []  # parts of this epoch that earlier plans covered, see `Begun`
        self._saved_bad_rows: dict[str, int] | None = None
        self._plan: BatchPlan | None = None
        self._bad_rows: BadRowLog | None = None

    @property
    def validation_names(self) -> list[str]:
        """Names of the validation sets, in the order of their loaders."""
        return list(self.settings.validation)

    @property
    def train_sources(self) -> list[RowSource]:
        """The sources of the training rows; empty before training."""
        return [] if self._plan is None else [weighted.source for weighted in self._plan.sources]

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, batches of it that are done): where training resumes."""
        if self._in_step is None:
            return self._next
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return _after(self._in_step) if progress.processed == progress.ready else self._next

    def train_dataloader(self) -> PlanLoader:
        if self.settings.train is None:
            raise ConfigError("data.train_ds is not given")
        if self.trainer is not None:
            epoch, batches = self._next
            window = self.accumulate_grad_batches or self.trainer.accumulate_grad_batches
            epoch_is_over = epoch > 0 and batches == 0 and not self._begun
            again = _repair_progress(self.trainer, window, epoch_is_over=epoch_is_over)
            self._next = (epoch, batches - again)
        settings = self.settings.train
        self._plan, dataset = self.open_loader(settings, seed=settings.seed)
        _tell_system(self.train_sources, self.prompts)
        self._adopt_position(self._plan)
        return PlanLoader(
            self._plan,
            dataset,
            position=lambda: self.position,
            num_workers=settings.num_workers,
            prefetch_factor=settings.prefetch_factor,
        )

    def val_dataloader(self) -> list[SizedPlanLoader]:
        if not self.settings.validation:
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        loaders = []
        for settings in self.settings.validation.values():
            plan, dataset = self.open_loader(settings, seed=None)
            workers = {"num_workers": settings.num_workers, "prefetch_factor": settings.prefetch_factor}
            loaders.append(SizedPlanLoader(plan, dataset, **workers))
        return loaders

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Called by Lightning right before a step consumes the batch; only here the batch counts as consumed."""
        if self.trainer.training:
            if self._in_step is not None:
                self._next = _after(self._in_step)
            self._in_step = batch["position"]
            # Without a length Lightning cannot see the end of the data when limit_train_batches is set.
            self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch |= self._in_step[2]
        self.bad_rows.update(batch["num_rows"], batch["bad_rows"])
        return batch

    @property
    def bad_rows(self) -> BadRowLog:
        """The log of rows that could not be used, one per rank; only ranks that read data write it to disk."""
        if self._bad_rows is None:
            settings, rank = self.settings.bad_rows, self._rank_and_size()[0]
            path = Path(settings.path) if settings.path else self.log_dir and self.log_dir / "bad_rows.jsonl"
            if path and rank > 0:
                path = path.with_suffix(f".{rank}{path.suffix}")
            reads = self.trainer is None or getattr(self.trainer.strategy, "reads_data", True)
            limits = {"max_share": settings.max_share, "min_bad_rows": settings.min_bad_rows}
            self._bad_rows = BadRowLog(path if reads else None, quiet=not reads, **limits)
            if self._saved_bad_rows is not None:
                self._bad_rows.load_state_dict(self._saved_bad_rows)
        return self._bad_rows

    def state_dict(self) -> dict[str, Any]:
        epoch, batches = self.position
        return {
            "epoch": epoch,
            "batches_done": batches,
            "bad_rows": self.bad_rows.state_dict(),
            "plan": _fingerprint(self._plan) if self._plan is not None else self._saved_plan,
            "begun": [item for item in self._begun if item["epoch"] == epoch],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._next, self._in_step = (state_dict["epoch"], state_dict["batches_done"]), None
        self._saved_plan, self._saved_bad_rows = state_dict["plan"], state_dict["bad_rows"]
        self._begun = list(state_dict.get("begun", []))
        self._bad_rows = None

    def open_loader(
        self, settings: LoaderSettings, *, seed: int | None, view: Callable[[RowSource], RowSource] | None = None
    ) -> tuple[BatchPlan, RowDataset]:
        """Plan and dataset of a loader. ``seed``: of `RowDataset`; ``view``: replaces each source, for a sample of it.

        Raises:
            ConfigError: a source that cannot be opened. FileNotFoundError: no such file. ValueError: no rows.
        """
        weighted = open_input_cfg(settings.input_cfg, self.settings.audio_roots, audio_role=self.prompts.audio_role)
        if view is not None:
            weighted = [item._replace(source=view(item.source)) for item in weighted]
        sources = [item.source for item in weighted]
        costs = RowCosts(
            sources,
            self.prompts,
            self.num_audio_tokens,
            sampling_rate=first_rate(self.sampling_rate),
            max_row_tokens=settings.batch_tokens,
            max_target_tokens=settings.max_target_tokens,
            text_tokens=settings.text_tokens,
        )
        rank, size = self._rank_and_size()
        plan = BatchPlan(weighted, costs.tokens, settings.plan(), rank=rank, num_ranks=size)
        dataset = RowDataset(
            sources,
            self.prompts,
            sampling_rate=self.sampling_rate,
            max_target_tokens=settings.max_target_tokens,
            seed=seed,
            hash_audio=self.settings.feature_cache is not None,
        )
        return plan, dataset

    def _rank_and_size(self) -> tuple[int, int]:
        """Data-parallel rank and size (tensor-parallel ranks of one group read the same data)."""
        found = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (found["rank"], found["num_replicas"]) if found else (0, 1)

    def _adopt_position(self, plan: BatchPlan) -> None:
        """Apply the loaded position. If it belongs to another plan, plan the rest of its epoch again."""
        saved, self._saved_plan = self._saved_plan, None
        epoch, batches = self._next
        if saved is not None and saved != (current := _fingerprint(plan)):
            changes = [
                f"{key} was {saved.get(key)}, is {value}" for key, value in current.items() if saved.get(key) != value
            ]
            drawn = any(share is not None for _, _, share in current["rows"])  # an epoch's rows then depend on:
            draw = ("seed", "shuffle", "rows_per_epoch") if drawn else ()
            same_rows = [row[1:] for row in saved["rows"]] == [row[1:] for row in current["rows"]]
            if same_rows and all(saved.get(key) == current[key] for key in draw):
                if batches:
                    self._begun.append({"epoch": epoch, "steps": batches, "plan": saved})
                    self._next = (epoch, 0)
                logger.warning(
                    "this resume has another plan of batches (%s): the rest of epoch %d is planned again; no row "
                    "of it is skipped or repeated",
                    "; ".join(changes),
                    epoch,
                )
            else:
                self._begun = []
                self._next = (epoch, batches * saved["num_ranks"] // current["num_ranks"])
                logger.warning(
                    "this resume is not exact (%s): resuming at batch %d of epoch %d of the new plan, so some "
                    "rows of that epoch may come twice or not at all",
                    "; ".join(changes),
                    self._next[1],
                    epoch,
                )
        known = [field.name for field in fields(PlanSettings)]
        begun = []
        for item in (item for item in self._begun if item["epoch"] == epoch):
            settings = PlanSettings(**{key: item["plan"][key] for key in known if key in item["plan"]})
            begun.append(Begun(settings, item["plan"]["num_ranks"], item["steps"]))
        plan.begun = (epoch, begun)


def _tell_system(sources: Sequence[RowSource], prompts: PromptBuilder) -> None:
    """Warn of rows with a system message that conversations with the trained model will not have; first rows only."""
    told = set()
    for source in sources:
        try:
            first = source.row(0)["messages"][0]
        except RowError:  # the loader names bad rows
            continue
        if first["role"] == "system" and first["content"] not in told and not prompts.has_own_system(first["content"]):
            told.add(first["content"])
            logger.warning(
                "rows of %s have the system message %.200r, which conversations with the trained model will not have; "
                "model.prompt.system=%.200r gives it to all conversations",
                source.name,
                first["content"],
                first["content"],
            )


def _after(position: tuple[int, int, bool]) -> tuple[int, int]:
    epoch, number, is_last = position
    return (epoch + 1, 0) if is_last else (epoch, number + 1)


def _fingerprint(plan: BatchPlan) -> dict[str, Any]:
    """The inputs of a plan, as plain values."""
    return {
        **vars(plan.settings),
        "num_ranks": plan.num_ranks,
        "rows": [[item.source.name, len(item.source), item.share] for item in plan.sources],
    }


def _repair_progress(trainer: Any, window: int, *, epoch_is_over: bool) -> int:
    """Make Lightning 2.4 restart where its checkpoint was saved; returns how many batches must be trained again.

    Lightning saves in ``on_train_batch_end``, before it counts that batch as completed. It therefore restarts one
    batch too low, and gradient accumulation would close its windows one batch late. After the last batch of an epoch
    it trains another one unless a validation has run, which with ``val_check_interval`` may not be due. It also loses
    the gradients of an unfinished accumulation window: those batches must be trained again.
    """
    loop = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress
    if not loop.restarting or progress.current.processed != progress.current.ready:
        return 0
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")  # it is, through the data module
    progress.is_last_batch |= epoch_is_over
    interval, limit = trainer.val_check_interval, trainer.limit_train_batches
    limited = isinstance(limit, int)  # a float is a share; 1.0 means no limit
    if progress.is_last_batch or (limited and progress.current.ready == limit):
        again = 0
        if limited and isinstance(interval, float):
            interval = max(1, int(limit * interval))
        batches = (progress.total if trainer.check_val_every_n_epoch is None else progress.current).ready
        if isinstance(interval, int) and batches % interval != 0:
            loop.val_loop._has_run = True  # pretend, as none is due
            trainer.callbacks.append(_NoValidationHasRun())
    else:
        again = progress.current.ready % window
    for count in (progress.current, progress.total):
        count.ready = count.started = count.processed = count.completed = count.ready - again
    return again


class _NoValidationHasRun(Callback):
    """Undoes the flag that `_repair_progress` sets, after the epoch and before a `ModelCheckpoint` reads it.

    After a validation, `ModelCheckpoint` treats a monitored metric that is not logged as an error.
    """

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.fit_loop.epoch_loop.val_loop._has_run = False
        trainer.callbacks.remove(self)
