"""Settings of trainer, callbacks, exp_manager and optimiser: types and values, checked without weights or data.

Optimiser and schedule are built over one small parameter, so that a wrong value fails here and not after the LLM has
been loaded. The data section has its own checks in `nemo_desta.data.settings`, the model's in `nemo_desta.config`.
"""

import difflib
import inspect
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from hydra.utils import get_object
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from nemo.collections.speechlm2.parts.optim_setup import configure_optimizers
from nemo.utils import logging
from nemo.utils.exp_manager import ExpManagerConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_desta.config import ModelConfig, check_keys, check_type, to_dict
from nemo_desta.errors import ConfigError
from nemo_desta.training.run_settings import RESUME
from nemo_desta.user_errors import one_line

#: Arguments of the Trainer that this package sets itself, and the settings that decide about them.
OWN = {
    "plugins": "no setting",
    "callbacks": "the section callbacks",
    "use_distributed_sampler": "no setting",
    "enable_model_summary": "no setting",
    "logger": "exp_manager.create_tensorboard_logger, create_wandb_logger",
    "enable_checkpointing": "exp_manager.create_checkpoint_callback",
}
CHECKS = (True, False, None, "elsewhere")


def check_sections(settings: Mapping[str, Any]) -> None:
    """Sections are mappings; ``seed``, ``check``, ``check_rate`` and ``resume`` have values that exist.

    Raises:
        ConfigError: the message names the key, what was found and what is expected.
    """
    for name in ("model", "trainer", "data", "exp_manager"):
        if not isinstance(settings.get(name), Mapping):
            raise ConfigError(f"'{name}' must be a mapping of settings, found {settings.get(name)!r}")
    seed, rate = settings.get("seed", 42), settings.get("check_rate")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ConfigError(f"'seed' must be a whole number from 0 to {2**32 - 1}, found {seed!r}")
    if settings.get("resume", "auto") not in RESUME:
        raise ConfigError(f"'resume' must be one of {', '.join(RESUME)}, found {settings['resume']!r}")
    if settings.get("check") not in CHECKS:
        raise ConfigError(f"'check' must be true, false or elsewhere, found {settings['check']!r}")
    if rate is not None and not (isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0):
        raise ConfigError(f"'check_rate' must be hours of audio per GPU-hour, above 0, found {rate!r}")


def check_trainer(settings: Mapping[str, Any], *, elsewhere: bool = False) -> None:
    """Keys, types and ranges of the section ``trainer``, and that this machine has its devices.

    ``elsewhere``: the run is for another machine; devices are not compared with this one's.
    """
    hints = typing.get_type_hints(Trainer.__init__)
    hints.pop("return")
    check_keys(settings, hints, "trainer")
    for key, value in settings.items():
        if key in OWN:
            raise ConfigError(f"'trainer.{key}' is set by this package: {OWN[key]} decides about it")
        if key != "strategy":
            check_type(value, hints[key], f"'trainer.{key}'")
    if not isinstance(strategy := settings.get("strategy"), Mapping | None):
        raise ConfigError(f"trainer.strategy must be the strategy group (${{strategy}}), found {strategy!r}")
    max_steps, max_epochs = settings.get("max_steps", -1), settings.get("max_epochs")
    if max_steps < 1 and not (max_steps == -1 and (max_epochs or settings.get("max_time"))):
        raise ConfigError(f"'trainer.max_steps' must be at least 1 (or -1 with max_epochs), found {max_steps}")
    for key in ("accumulate_grad_batches", "num_nodes", "log_every_n_steps"):
        if settings.get(key) is not None and settings[key] < 1:
            raise ConfigError(f"'trainer.{key}' must be at least 1, found {settings[key]}")
    if max_epochs not in (None, -1) and settings.get("check_val_every_n_epoch", 1) is None:
        raise ConfigError("trainer.max_epochs needs trainer.check_val_every_n_epoch: 1 validates in every epoch")
    if not elsewhere:
        check_devices(settings.get("devices", "auto"), settings.get("accelerator", "auto"))


def check_devices(devices: Any, accelerator: str) -> None:
    """Raise `ConfigError` for more GPUs than this machine has. With ``accelerator=cpu`` any number is possible."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = max(devices, default=-1) + 1 if isinstance(devices, list) else devices
    wanted = int(wanted) if str(wanted).lstrip("-").isdigit() else wanted
    no_gpu = found == 0 and (accelerator != "auto" or wanted not in (0, 1, "auto"))
    if no_gpu or (isinstance(wanted, int) and found and wanted > found):
        here = f"{found} GPU{'s' * (found != 1)}" if found else "no GPU"
        raise ConfigError(
            f"'trainer.devices' is {devices} but this machine has {here}. To check a config for another machine: "
            "check=elsewhere; to train on a CPU: trainer.accelerator=cpu trainer.devices=1"
        )


def check_exp_manager(settings: Mapping[str, Any]) -> None:
    """Keys and types of the section ``exp_manager``, and that its checkpoint callback can be built."""
    if settings.get("disable_validation_on_resume"):
        raise ConfigError(
            "exp_manager.disable_validation_on_resume must be false: with true a resumed run skips a validation "
            "that is due, and trains past the end of an epoch with a validation at its end"
        )
    check_type(settings.get("checkpoint_callback_params"), dict | None, "'exp_manager.checkpoint_callback_params'")
    try:
        schema = OmegaConf.create({"exp_manager": OmegaConf.structured(ExpManagerConfig)})
        OmegaConf.merge(schema, {"exp_manager": dict(settings)})
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    known = inspect.signature(ModelCheckpoint.__init__).parameters
    given = settings.get("checkpoint_callback_params") or {}
    options = {key: value for key, value in given.items() if key in known and key != "dirpath"}
    try:
        ModelCheckpoint(**options)
    except Exception as error:  # Lightning has its own kinds here
        raise ConfigError(f"exp_manager.checkpoint_callback_params: {_first_line(error)}") from error


@dataclass(frozen=True)
class Rates:
    """Learning rates of a schedule: the highest, and the one of the last step. ``warmup_steps``: None if unknown."""

    peak: float
    last: float
    warmup_steps: int | None


def check_optimisation(model: ModelConfig, max_steps: int) -> Rates:
    """Build optimiser and schedule over one parameter and ask for the learning rates of a run of ``max_steps``.

    Raises:
        ConfigError: an unknown class or argument, or a wrong value.
    """
    values = to_dict(model)
    for section in ("optimizer", "lr_scheduler"):
        if section == "lr_scheduler" and not values[section]:
            continue
        if not isinstance(values[section].get("_target_"), str):
            found = values[section].get("_target_")
            raise ConfigError(f"'model.{section}._target_' must be the dotted name of a class, found {found!r}")
        _check_arguments(values[section], f"model.{section}")
    warmup = (values["lr_scheduler"] or {}).get("warmup_steps")
    parameter = torch.nn.Parameter(torch.zeros(2, 2))

    def build(kept: Mapping[str, Any]) -> dict[str, Any]:
        cfg = OmegaConf.create({key: value for key, value in kept.items() if value})
        with logging.temp_verbosity(logging.ERROR):  # it would count the parameters of this stand-in
            return configure_optimizers(SimpleNamespace(cfg=cfg, named_parameters=lambda: [("weight", parameter)]))

    optimizer = _built("model.optimizer", values["optimizer"], lambda: build({"optimizer": values["optimizer"]}))
    if not values["lr_scheduler"]:
        rate = optimizer["optimizer"].param_groups[0]["lr"]
        return Rates(rate, rate, None)

    def rates() -> list[float]:
        scheduler = build(values)["lr_scheduler"]["scheduler"]
        if not hasattr(scheduler, "get_lr"):
            return [group["lr"] for group in scheduler.optimizer.param_groups]
        found = []
        end = max(1, max_steps)
        for step in sorted({0, min(warmup or 0, end - 1), min((warmup or 0) + 1, end - 1), end // 2, end - 1}):
            scheduler.last_epoch, scheduler._get_lr_called_within_step = step, True
            found += scheduler.get_lr()[:1]
        return [float(rate) for rate in found]

    found = _built("model.lr_scheduler", values["lr_scheduler"], rates)
    return Rates(max(found), found[-1], warmup if isinstance(warmup, int) else None)


def check_warmup(model: ModelConfig) -> None:
    """Raise `ConfigError` for a warm-up that takes the whole schedule. A trial of a few steps may train like that."""
    scheduler = model.lr_scheduler or {}
    warmup, length = scheduler.get("warmup_steps"), scheduler.get("max_steps")
    if isinstance(warmup, int) and isinstance(length, int) and 0 < length <= warmup:
        raise ConfigError(
            f"'model.lr_scheduler.warmup_steps' is {warmup} of {length} steps (max_steps): the learning rate would "
            f"never reach lr. Give model.lr_scheduler.warmup_steps={max(1, length // 10)}, or more steps"
        )


def _check_arguments(section: Mapping[str, Any], where: str) -> None:
    """Compare arguments of a ``_target_`` with its signature, as far as that has names and types."""
    try:
        target = get_object(section["_target_"])
    except Exception as error:  # hydra's, or whatever importing raises
        module, _, name = section["_target_"].rpartition(".")
        near = difflib.get_close_matches(name, dir(sys.modules.get(module)), n=1)
        hint = f". Did you mean '{module}.{near[0]}'?" if near else ""
        raise ConfigError(f"'{where}._target_': {_first_line(error)}{hint}") from error
    parameters = inspect.signature(target).parameters
    named = [key for key in section if not key.startswith("_")]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_keys(named, list(parameters)[1:], where)
    try:
        hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    except Exception:  # a hint that names something which is only imported for type checkers
        hints = {}
    for key in named:
        default = getattr(parameters.get(key), "default", None)
        if key in hints:
            check_type(section[key], hints[key], f"'{where}.{key}'")
        elif type(default) in (int, float) and section[key] is not None:
            check_type(section[key], float, f"'{where}.{key}'")


def _built(where: str, section: Mapping[str, Any], build: Any) -> Any:
    try:
        return build()
    except Exception as error:  # whatever a class that the user names raises for its arguments
        given = ", ".join(f"{key}={value!r}" for key, value in section.items() if not key.startswith("_"))
        raise ConfigError(f"'{where}' cannot be built from {given}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
