"""Settings that determine a run's numbers: stored in its checkpoints and compared before a resume, key by key.

Settings for paths and speed may change. Any other change is refused, or accepted with ``resume=force``. A key that
this file does not list counts as one that changes the numbers.
"""

import hashlib
import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nemo_desta.config import ModelConfig, to_dict
from nemo_desta.core.fingerprint import TOKENIZER_FILES
from nemo_desta.data.rows import expand_paths
from nemo_desta.data.settings import parse_data
from nemo_desta.data.sources import read_input_cfg
from nemo_desta.errors import ConfigError
from nemo_desta.ops.dtypes import as_dtype, dtype_name
from nemo_desta.sources import file_digest, local_folder, sampled_blocks

logger = logging.getLogger(__name__)

RESUME = ("auto", "force")
#: Settings that change no number of the training: paths, speed, logs, validation, and the end of the run. Frozen parts
#: and rows are compared by content, data-parallel ranks by the data module.
FREE = (
    *("model.llm.path", "model.llm.tokenizer", "model.llm.trust_remote_code", "model.perception.encoders.*.path"),
    *("model.perception.init_from*", "model.activation_checkpointing", "strategy.*", "callbacks.*"),
    *("trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.max_steps", "trainer.max_epochs"),
    *("trainer.min_steps", "trainer.min_epochs", "trainer.max_time", "trainer.log_every_n_steps", "trainer.enable_*"),
    *("trainer.profiler", "trainer.default_root_dir", "trainer.num_sanity_val_steps", "trainer.limit_val_batches"),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.inference_mode", "trainer.logger"),
    *("data.validation_ds.*", "data.bad_rows.*", "data.audio_roots.*"),
    *("data.train_ds.num_workers", "data.train_ds.prefetch_factor"),
)
#: Keys of an ``input_cfg`` entry that are paths of rows and audio files.
PATHS = ("rows", "manifest_filepath", "shar_path", "audio_roots")
TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.jinja")
#: Row files of one entry are hashed completely up to this many bytes.
HASHED_WHOLE = 1 << 30
OPTIMISATION = ("model.optimizer.", "model.lr_scheduler.")


class SettingsChanged(ConfigError):
    """The run began with other settings; the message names every key, its old and its new value."""


def describe_run(model: ModelConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by dotted key, as plain values; rows and tokenizer as hashes of their files."""
    data = asdict(parse_data(settings["data"]))
    train, validation = data.pop("train") or {}, data.pop("validation")
    cache = data.pop("feature_cache") or {}
    sources = read_input_cfg(train.pop("input_cfg", None))
    trainer = {key: value for key, value in settings["trainer"].items() if key != "strategy"}
    sections = {
        "model": {**_number_formats(to_dict(model)), "tokenizer_files": _tokenizer(model)},
        "trainer": trainer,
        "strategy": settings["trainer"].get("strategy") or {},
        "data": {
            **data,
            "train_ds": {**train, "input_cfg": _contents(sources)},
            "validation_ds": validation,
            "feature_cache.dtype": None if cache.get("dtype") == "auto" else cache.get("dtype"),  # it may round
        },
        "callbacks": settings.get("callbacks") or {},
        "seed": settings.get("seed", 42),
    }
    return json.loads(json.dumps(dict(_flat(sections)), default=str))


def compare_run(before: Mapping[str, Any] | None, now: Mapping[str, Any], *, force: bool) -> list[str]:
    """Log the settings that differ from the checkpoint's; returns the changed keys that change the numbers.

    Args:
        before: result of `describe_run`; None for a checkpoint of an earlier version. force: accept all changes.

    Raises:
        SettingsChanged: without ``force``, if a change affects the numbers.
    """
    if before is None:
        logger.info("the checkpoint holds no settings (an earlier version wrote it): they are not compared")
        return []
    defaults = {f"trainer.{key}": item.default for key, item in inspect.signature(Trainer.__init__).parameters.items()}
    old, new = ({**defaults, **settings} for settings in (before, now))
    changed = [key for key in sorted({**before, **now}) if old.get(key) != new.get(key)]
    changed = [key for key in changed if key != "model.tokenizer_files" or None not in (old.get(key), new.get(key))]
    lines = {key: f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in changed}
    matters = [key for key in changed if not any(fnmatchcase(key, pattern) for pattern in FREE)]
    if free := [lines[key] for key in changed if key not in matters]:
        logger.info("changed settings that do not affect the numbers: %s", "; ".join(free))
    if not matters:
        return []
    listed = "\n".join(f"  {lines[key]}" for key in matters)
    if not force:
        hint = ""
        if "model.lr_scheduler.max_steps" in matters and "trainer.max_steps" in changed:
            was = old.get("model.lr_scheduler.max_steps")
            hint = f" To train longer with the old schedule: model.lr_scheduler.max_steps={was}."
        raise SettingsChanged(
            f"this run began with other settings:\n{listed}\nTo resume it, give the old settings.{hint} To use the "
            "new ones from its last checkpoint on: resume=force. To begin anew: another exp_manager.exp_dir or name"
        )
    logger.warning("resume=force: from this checkpoint on the run uses new settings:\n%s", listed)
    return matters


class RunSettings(Callback):
    """Stores the settings in every checkpoint."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings}

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> dict[str, Any] | None:
        """The settings in a checkpoint; None if an earlier version wrote it."""
        return saved.get("callbacks", {}).get(cls.__qualname__, {}).get("settings")


class NewOptimisation(Callback):
    """Applies new settings of optimiser and schedule in a resume; without it the checkpoint silently restores the old.

    The optimiser keeps its moments, unless its class changes, and the schedule keeps its count of steps.
    """

    def __init__(self, *, other_optimizer: bool) -> None:
        self.other_optimizer = other_optimizer

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        counts = ("last_epoch", "_step_count")
        checkpoint["lr_schedulers"] = [
            {key: state[key] for key in counts if key in state} for state in checkpoint["lr_schedulers"]
        ]
        if self.other_optimizer:
            logger.warning("another optimiser class: it starts without moments")
            checkpoint["optimizer_states"] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update({**optimizer.defaults, "initial_lr": optimizer.defaults["lr"]})
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            of_step = getattr(scheduler, "_get_closed_form_lr", scheduler.get_lr)
            scheduler._get_lr_called_within_step = True  # avoids a warning
            scheduler._last_lr = of_step()
            scheduler._get_lr_called_within_step = False
            for group, lr in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
                group["lr"] = lr
        rates = sorted({group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups})
        logger.warning(
            "resume=force: the learning rate of the next step is %s", ", ".join(f"{lr:.4g}" for lr in rates)
        )


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


def _number_formats(model: dict[str, Any]) -> dict[str, Any]:
    """``model`` with what ``dtype: fastest`` is on this machine."""
    for part in (model["llm"], model["perception"]):
        if part["dtype"] == "fastest":
            part["dtype"] = dtype_name(as_dtype("fastest"))
    return model


def _contents(items: list[Mapping[str, Any]]) -> dict[str, Any]:
    """``input_cfg`` by number; hashes of the row files replace their paths."""
    found = {}
    for number, item in enumerate(items):
        entry = {key: value for key, value in item.items() if key not in PATHS}
        if item.get("type") == "group":
            entry["input_cfg"] = _contents(read_input_cfg(item.get("input_cfg")))
        elif rows := item.get("rows") or item.get("manifest_filepath") or item.get("shar_path"):
            entry["rows"] = _content(rows)
        found[str(number)] = entry
    return found


def _content(rows: Any) -> str:
    """Number of files, bytes, and a hash of the whole content; above 1 GiB, of blocks spread over each file."""
    if isinstance(rows, (str, Path)) and Path(rows).is_dir():
        files = sorted(path for path in Path(rows).rglob("*") if path.is_file())
    else:
        files = expand_paths(rows["cuts"] if isinstance(rows, Mapping) else rows)  # a shar's rows are in its cuts
    digest, size = hashlib.sha256(), sum(file.stat().st_size for file in files)
    for file in files:
        digest.update(f"{file.stat().st_size}\n".encode())
        if size <= HASHED_WHOLE:
            file_digest(file, digest)
            continue
        for block in sampled_blocks(file):
            digest.update(block)
    return f"{len(files)} files of {size:,} bytes, sha256 {digest.hexdigest()[:16]}"


def _tokenizer(model: ModelConfig) -> str | None:
    """A hash of the files that determine prompts and ids; None if they are not on this machine."""
    folder = local_folder(model.llm.tokenizer or model.llm.path)
    if folder is None or not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for name in (*TOKENIZER_FILES, *TEMPLATE_FILES):
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
