"""The command of `desta export`: export a trained model, import a released one, or join several to an ensemble."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.screen import silence_imports
from nemo_desta.sharing.publish import check_repo_id, open_api, push_folder

#: Permissions; settings that `export_model` takes; and those that an import must not have.
GRANTS = ("trust_remote_code", "allow_targets")
PASSED_ON = ("llm", "encoders", "full_hashes", "carry_code", "overwrite", "check_identity", *GRANTS)
EXPORT_ONLY = ("full_hashes", "carry_code", "push", "private", *GRANTS)
IMPORT_ONLY = ("source", "original_masks")


@dataclass(frozen=True)
class ExportConfig:
    """The settings of conf/use/export.yaml, which explains each; ``kind`` is ``import`` there."""

    model: str | None = None
    output: str | None = None
    kind: str | None = None
    join: dict[str, str] | None = None
    source: str | None = None
    llm: str | None = None
    encoders: dict[str, str] | None = None
    original_masks: bool = False
    check_identity: bool = True
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)
    full_hashes: bool = False
    carry_code: bool = False
    overwrite: bool = False
    push: bool = False
    repo_id: str | None = None
    private: bool = False


def run_export(cfg: DictConfig | Mapping[str, Any], *, api: Any = None) -> str:
    """Export, import or join; returns a line that describes the result. ``api``: see `push_folder`.

    Raises:
        ConfigError: wrong or contradicting settings. Also the errors of exporting, importing and pushing.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    plain["kind"] = plain.pop("import", None)
    config = parse(ExportConfig, plain, where="export")
    _check(config)
    with silence_imports():
        from nemo_desta.core.build import hide_loading_bars
        from nemo_desta.core.folder import is_model_folder
        from nemo_desta.sharing.export import export_model
        from nemo_desta.sharing.join import join_models
        from nemo_desta.sharing.output_folder import atomic_folder, check_output
        from nemo_desta.sharing.released import write_released
    hide_loading_bars()

    if config.model is None:
        output = Path(config.output).expanduser().absolute()
        for source in config.join.values() if config.join else [config.source]:
            known = {"kind": "join" if config.join else "import", "is_earlier": is_model_folder}
            check_output(output, Path(source).expanduser(), **known, overwrite=config.overwrite)
        with atomic_folder(output) as part:
            if config.join:
                join_models(config.join, part, llm=config.llm)
            else:
                options = {name: getattr(config, name) for name in ("llm", "encoders", "original_masks")}
                write_released(config.kind, config.source, part, **options)
        return f"{config.kind or ', '.join(config.join)} written to {output}"

    api = (api or open_api()) if config.push else None  # fails here, before anything is written, without a token
    passed_on = {name: getattr(config, name) for name in PASSED_ON}
    folder = export_model(config.model, config.output, name=config.repo_id, **passed_on)
    if not config.push:
        return f"exported to {folder}"
    return f"exported to {folder}, pushed to {push_folder(folder, config.repo_id, private=config.private, api=api)}"


def _check(config: ExportConfig) -> None:
    if sum(one is not None for one in (config.model, config.kind, config.join)) != 1:
        raise ConfigError(
            "give model=<folder> to export, or import=<desta25|desta2|alarm> source=<folder>, or "
            "join={<name>: <model folder>, ...}"
        )
    if config.output is None:
        raise ConfigError("output (the folder to write) must be given")
    if config.join is None and (config.kind is None) != (config.source is None):
        raise ConfigError("import (the kind of released model) and source (its folder) go together")
    if config.model is None and (given := [name for name in EXPORT_ONLY if getattr(config, name)]):
        raise ConfigError(f"{', '.join(given)}: for exports; import or join first, then export what was written")
    if config.join is not None and (given := [n for n in (*IMPORT_ONLY, "encoders") if getattr(config, n)]):
        raise ConfigError(f"{', '.join(given)}: not for join=..., whose members have their own")
    if config.join is not None and not config.check_identity:
        raise ConfigError("check_identity=false is not for join=...: its members must fit the parts that they share")
    if config.original_masks and config.kind is None:
        raise ConfigError("original_masks is for import=alarm; an export keeps the masks of its model")
    if config.push:
        check_repo_id(config.repo_id)
    elif config.private:
        raise ConfigError("private=true goes with push=true")
