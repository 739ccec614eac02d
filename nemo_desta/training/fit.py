"""Training: config -> trained projector. All config errors that need no weights are reported before weights load."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from nemo.utils.exp_manager import exp_manager, get_log_dir
from nemo.utils.get_rank import is_global_rank_zero
from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import ModelConfig, check_keys, check_type, parse
from nemo_desta.core.feature_identity import open_feature_cache
from nemo_desta.data.datamodule import DestaDataModule
from nemo_desta.data.settings import parse_data
from nemo_desta.errors import ConfigError
from nemo_desta.models.base import DestaBase
from nemo_desta.perception.registry import PROJECTORS
from nemo_desta.training.calibration import Calibration, check_calibration
from nemo_desta.training.callbacks import (
    GracefulStop,
    LastValidation,
    NaNGuard,
    SampleAnswers,
    StepLog,
    StepSeed,
    Stopped,
    Throughput,
    records_folder,
)
from nemo_desta.training.check_report import report
from nemo_desta.training.check_settings import (
    check_exp_manager,
    check_optimisation,
    check_sections,
    check_trainer,
    check_warmup,
)
from nemo_desta.training.checkpoint_io import SafeCheckpointIO
from nemo_desta.training.checkpoints import Found, find_checkpoint
from nemo_desta.training.feature_caching import FeatureCaching
from nemo_desta.training.overrides import typed_overrides, with_empty
from nemo_desta.training.preflight import preflight
from nemo_desta.training.progress import RunProgress
from nemo_desta.training.run_lock import run_lock
from nemo_desta.training.run_log import run_log
from nemo_desta.training.run_record import write_record
from nemo_desta.training.run_settings import (
    OPTIMISATION,
    NewOptimisation,
    RunSettings,
    compare_run,
    describe_run,
)
from nemo_desta.training.sections import SECTIONS, VALUES
from nemo_desta.training.strategies import STEP_SETTINGS, build_strategy, check_layout, model_class, takes_step

logger = logging.getLogger(__name__)

AUTO = {"name": "auto"}
CALLBACK_KNOBS = ("throughput_window", "nan_patience", "sample_rows", "sample_max_new_tokens", "calibrate_clips")


def fit(cfg: DictConfig) -> DestaBase | None:
    """Train as ``cfg`` says; returns the model, or None after ``check=true`` or a SIGTERM. Ctrl-C saves
    the state too, then KeyboardInterrupt is raised.

    The trained part is written to ``<log dir>/model`` at the end. To resume a killed run from its newest intact
    checkpoint, give the same command again.

    Raises:
        ConfigError: an unknown or impossible setting; a setting that differs from the run's (`SettingsChanged`); a
            folder that another process trains into (`FolderInUse`); only damaged checkpoints (`NoWholeCheckpoint`).
        MissingParts: data or weights are missing.
    """
    check_keys(cfg, (*SECTIONS, *VALUES), "config")
    settings: dict[str, Any] = OmegaConf.to_container(with_empty(cfg, typed_overrides()), resolve=True)
    check_sections(settings)
    model_config = parse(ModelConfig, settings["model"])
    data = parse_data(settings["data"])
    elsewhere = settings.get("check") == "elsewhere"
    check_trainer(settings["trainer"], elsewhere=elsewhere)
    check_exp_manager(settings["exp_manager"])
    settings["exp_manager"].setdefault("disable_validation_on_resume", False)
    strategy = settings["trainer"].get("strategy") or AUTO
    rates = check_optimisation(model_config, settings["trainer"].get("max_steps", -1))
    preflight(model_config, settings["data"])
    projector, _ = PROJECTORS.read(model_config.perception.projector)
    check_calibration(_calibrate_clips(settings), PROJECTORS[projector], strategy["name"])
    split = check_layout(strategy, model_config, num_processes(settings["trainer"]))
    if settings.get("check"):
        check_warmup(model_config)
        local = {"devices": 1, "num_nodes": 1, "accelerator": "cpu"} if elsewhere else {}
        build_trainer({**settings["trainer"], **local}, settings.get("callbacks"), settings.get("seed", 42))
        processes = num_processes(settings["trainer"])
        print(report(model_config, settings, data, rates, num_processes=processes, split=split))
        return None

    seed = settings.get("seed", 42)
    seed_everything(seed)
    trainer = build_trainer(settings["trainer"], settings.get("callbacks"), seed)
    with _run_folder(trainer, settings["exp_manager"]) as found:
        return _fit(trainer, model_config, settings, found)


def _fit(
    trainer: Trainer, model_config: ModelConfig, settings: Mapping[str, Any], found: Found | None
) -> DestaBase | None:
    run, force = describe_run(model_config, settings), settings.get("resume") == "force"
    own = {}
    if not (settings["data"].get("validation_ds") or {}).get("datasets"):
        own["checkpoint_callback_params"] = keep_newest(settings["exp_manager"].get("checkpoint_callback_params"))
    if found is not None:
        if 0 < trainer.max_steps < found.step:
            raise ConfigError(f"the run has done {found.step} steps, more than trainer.max_steps={trainer.max_steps}")
        own["resume_ignore_no_checkpoint"] = True  # exp_manager only finds *last.ckpt
        changed = compare_run(RunSettings.read(found.saved), run, force=force)
        if any(key.startswith(OPTIMISATION) for key in changed):
            trainer.callbacks.append(NewOptimisation(other_optimizer="model.optimizer._target_" in changed))
    trainer.callbacks.append(RunSettings(run))
    log_dir = Path(exp_manager(trainer, OmegaConf.create({**settings["exp_manager"], **own})))
    with run_log(log_dir, write=trainer.is_global_zero):
        return _fit_in(log_dir, trainer, model_config, settings, found)


def _fit_in(
    log_dir: Path, trainer: Trainer, model_config: ModelConfig, settings: Mapping[str, Any], found: Found | None
) -> DestaBase | None:
    if found is not None:
        trainer.ckpt_path = str(found.path)
        logger.info("resuming from %s, step %d", found.path, found.step)
    if (caching := parse_data(settings["data"]).feature_cache) is not None:
        cache = open_feature_cache(caching, model_config)
        trainer.callbacks.append(FeatureCaching(cache, parse_data(settings["data"])))
    if (num_clips := _calibrate_clips(settings)) and found is None:
        trainer.callbacks.append(Calibration(num_clips, parse_data(settings["data"])))
    model = model_class(settings["trainer"].get("strategy") or AUTO)(model_config)
    data = DestaDataModule(
        settings["data"],
        prompts=model.prompts,
        num_audio_tokens=model.num_audio_tokens,
        sampling_rate=model.audio_rates,
        log_dir=records_folder(log_dir),
        accumulate_grad_batches=settings["trainer"].get("accumulate_grad_batches"),
    )
    model.validation_names = data.validation_names
    try:
        trainer.fit(model, datamodule=data, ckpt_path=trainer.ckpt_path)
    except Stopped as stopped:
        logger.warning("%s: state saved under %s. The same command resumes from here.", stopped, log_dir)
        if stopped.by_user:
            raise KeyboardInterrupt from None
        return None
    if model.trained_tokens == 0 and trainer.global_step > (0 if found is None else found.step):
        raise ConfigError(
            f"{trainer.global_step} steps without a supervised token: nothing was trained, and no model is written. "
            f"{records_folder(log_dir)} names the rows that could not be used"
        )
    if trainer.is_global_zero:
        model.save_pretrained(log_dir / "model")
        write_record(log_dir / "model", trainer, data, seed=settings.get("seed", 42))
        logger.info("trained part written to %s", log_dir / "model")
    return model


def _calibrate_clips(settings: Mapping[str, Any]) -> int:
    callbacks = settings.get("callbacks") or {}
    check_type(callbacks, dict, "'callbacks'")
    num_clips = callbacks.get("calibrate_clips", 0)
    check_type(num_clips, int, "'callbacks.calibrate_clips'")
    return num_clips


def keep_newest(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of the checkpoints of a run without validation: there is no metric, so the newest are kept."""
    return {**(params or {}), "monitor": "step", "mode": "max"}


@contextmanager
def _run_folder(trainer: Trainer, settings: Mapping[str, Any]) -> Iterator[Found | None]:
    """Lock the run's folder before exp_manager changes it; yields the checkpoint to resume from.

    The first process of a run holds the lock. A run that makes a new folder each time needs none.
    """
    if not settings.get("resume_if_exists"):
        yield None
        return
    keys = ("exp_dir", "name", "version", "explicit_log_dir", "use_datetime_version", "resume_if_exists")
    log_dir = Path(get_log_dir(trainer, **{key: settings[key] for key in keys if key in settings})[0])
    checkpoints = Path((settings.get("checkpoint_callback_params") or {}).get("dirpath") or log_dir / "checkpoints")
    if not is_global_rank_zero():
        yield find_checkpoint(checkpoints, tidy=False)
        return
    with run_lock(records_folder(log_dir)):
        yield find_checkpoint(checkpoints, tidy=True)


def build_trainer(settings: Mapping[str, Any], callbacks: Mapping[str, Any] | None, seed: int) -> Trainer:
    """A Lightning Trainer with our checkpoint IO and callbacks; loggers and checkpoints come from exp_manager."""
    settings = dict(settings)
    strategy = settings.pop("strategy", None) or AUTO
    moved = [key for key in STEP_SETTINGS if key in settings] if takes_step(strategy) else []
    by_strategy = {key: settings.pop(key) for key in moved}
    progress = [] if settings.pop("enable_progress_bar", True) is False else [RunProgress()]
    built = build_strategy(strategy, seed=seed, step_settings=by_strategy)
    own_callbacks = build_callbacks(callbacks or {}, seed)
    try:
        trainer = Trainer(
            **settings,
            strategy=built,
            plugins=[SafeCheckpointIO()],
            callbacks=[*own_callbacks, *progress],
            enable_progress_bar=False,  # `RunProgress` knows the total
            use_distributed_sampler=False,  # our sampler already splits batches over ranks
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    trainer.fit_loop = FitLoop(trainer)
    return trainer


class FitLoop(_FitLoop):
    """The loop of ``trainer``, for a checkpoint with all steps done and the last validation still to run.

    Lightning's own loop returns at once on such a resume: it runs no validation and no ``on_train_start``, which
    restores the metrics of an earlier validation.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, min_epochs=trainer.fit_loop.min_epochs, max_epochs=trainer.fit_loop.max_epochs)
        self.epoch_loop = trainer.fit_loop.epoch_loop

    def run(self) -> None:
        self.setup_data()
        if not (self.restarting and self.skip):
            super().run()
            return
        self.reset()
        self.on_run_start()
        if self.epoch_loop._should_check_val_fx(self._data_fetcher):
            self.epoch_loop.on_advance_end(self._data_fetcher)
        self.on_run_end()


def num_processes(settings: Mapping[str, Any]) -> int | None:
    """Number of processes of a ``trainer`` section; None if it depends on the machine."""
    devices = settings.get("devices")
    if devices in (-1, "-1") and torch.cuda.is_available():
        devices = torch.cuda.device_count()
    if isinstance(devices, list):
        devices = len(devices)
    return devices * settings.get("num_nodes", 1) if isinstance(devices, int) and devices > 0 else None


def build_callbacks(settings: Mapping[str, Any], seed: int) -> list[Callback]:
    """All callbacks with the settings of section ``callbacks``."""
    check_type(settings, dict, "'callbacks'")
    check_keys(settings, CALLBACK_KNOBS, "callbacks")
    for key, value in settings.items():
        check_type(value, int, f"'callbacks.{key}'")
    return [
        StepSeed(seed),
        StepLog(),
        LastValidation(),
        Throughput(settings.get("throughput_window", 20)),
        NaNGuard(settings.get("nan_patience", 5)),
        SampleAnswers(settings.get("sample_rows", 2), settings.get("sample_max_new_tokens", 64)),
        GracefulStop(),
    ]
