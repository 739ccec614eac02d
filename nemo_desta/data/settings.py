"""The config section ``data`` with its defaults. `nemo_desta.config` rejects unknown keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nemo_desta.config import FeatureCacheConfig, check_keys, check_type, parse, parse_feature_cache
from nemo_desta.data.sampler import PlanSettings
from nemo_desta.data.sources import read_input_cfg
from nemo_desta.errors import ConfigError


@dataclass(frozen=True)
class LoaderSettings:
    """One loader.

    ``input_cfg``: list of sources in NeMo's grammar, or a YAML file with that list. ``batch_tokens``: upper bound of
    rows times longest row, in LLM positions (audio and text). ``max_target_tokens``: a longer target is a bad row.
    ``text_tokens``: "auto", "exact" or "estimate", see `RowCosts`. ``bucket_buffer_size``, ``rows_per_epoch``: see
    `PlanSettings`.
    """

    input_cfg: Any = None
    batch_tokens: int = 8192
    max_batch_size: int = 32
    max_target_tokens: int | None = None
    bucket_buffer_size: int = 2048
    shuffle: bool = True
    seed: int = 0
    rows_per_epoch: int | None = None
    text_tokens: str = "auto"
    num_workers: int = 2
    prefetch_factor: int = 2

    def plan(self) -> PlanSettings:
        return PlanSettings(**{item.name: getattr(self, item.name) for item in fields(PlanSettings)})


@dataclass(frozen=True)
class BadRowSettings:
    """More than ``max_share`` bad rows, and at least ``min_bad_rows``, stop the run. ``path`` null: run folder."""

    max_share: float = 0.05
    min_bad_rows: int = 20
    path: str | None = None


@dataclass(frozen=True)
class DataSettings:
    """``audio_roots``: name -> folder. ``validation``: name of the set -> loader; one loader per set.
    ``feature_cache``: None is off."""

    audio_roots: dict[str, str] = field(default_factory=dict)
    train: LoaderSettings | None = None
    validation: dict[str, LoaderSettings] = field(default_factory=dict)
    bad_rows: BadRowSettings = field(default_factory=BadRowSettings)
    feature_cache: FeatureCacheConfig | None = None


def parse_data(cfg: Mapping[str, Any]) -> DataSettings:
    """NeMo's ``data`` section: ``audio_roots``, ``train_ds``, ``validation_ds: {datasets: {name: {...}}, ...}``.

    All keys of ``validation_ds`` other than ``datasets`` are defaults of its sets.

    Raises:
        ConfigError: unknown key (with the nearest known one) or wrong type.
    """
    check_keys(cfg, ("audio_roots", "train_ds", "validation_ds", "bad_rows", "feature_cache"), "data")
    check_type(cfg.get("audio_roots"), dict[str, str] | None, "'data.audio_roots'")
    check_type(cfg.get("validation_ds"), dict | None, "'data.validation_ds'")
    train = cfg.get("train_ds")
    shared = {"shuffle": False, **(cfg.get("validation_ds") or {})}
    sets = shared.pop("datasets", None) or {}
    check_type(sets, dict[str, dict | None], "'data.validation_ds.datasets'")
    parse(LoaderSettings, shared, "data.validation_ds")
    validation = {
        name: parse(LoaderSettings, {**shared, **(own or {})}, f"data.validation_ds.datasets.{name}")
        for name, own in sets.items()
    }
    train_loader = parse(LoaderSettings, train, "data.train_ds")
    for name, loader in {"train_ds": train_loader, **validation}.items():
        where = "data.train_ds" if name == "train_ds" else f"data.validation_ds.datasets.{name}"
        if loader.text_tokens not in ("auto", "exact", "estimate"):
            raise ConfigError(f"{name}.text_tokens must be auto, exact or estimate, found '{loader.text_tokens}'")
        read_input_cfg(loader.input_cfg, f"{where}.input_cfg")
        for key in ("batch_tokens", "max_batch_size", "bucket_buffer_size", "rows_per_epoch", "max_target_tokens"):
            if (value := getattr(loader, key)) is not None and value < 1:
                raise ConfigError(f"'{where}.{key}' must be at least 1, found {value}")
        if loader.num_workers < 0 or loader.prefetch_factor < 1 or loader.seed < 0:
            raise ConfigError(f"'{where}': num_workers and seed must be at least 0, prefetch_factor at least 1")
    return DataSettings(
        audio_roots=dict(cfg.get("audio_roots") or {}),
        train=train_loader if train else None,
        validation=validation,
        bad_rows=parse(BadRowSettings, cfg.get("bad_rows"), "data.bad_rows"),
        feature_cache=parse_feature_cache(cfg.get("feature_cache"), "data.feature_cache"),
    )
