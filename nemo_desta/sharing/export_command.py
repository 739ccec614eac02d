"""What `examples/desta_export.py` runs, by its config: an export for others, or the import of a released model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.sharing.publish import check_repo_id, open_api, push_folder

#: Settings that the other of the two jobs has.
EXPORT_ONLY = ("full_hashes", "push", "private", "trust_remote_code", "allow_targets")


@dataclass(frozen=True)
class ExportConfig:
    """The knobs of conf/use/export.yaml, which says what each is for; ``kind`` is ``import`` there."""

    model: str | None = None
    output: str | None = None
    kind: str | None = None
    source: str | None = None
    llm: str | None = None
    encoders: dict[str, str] | None = None
    check_identity: bool = True
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)
    full_hashes: bool = False
    overwrite: bool = False
    push: bool = False
    repo_id: str | None = None
    private: bool = False


def run_export(cfg: DictConfig | Mapping[str, Any], *, api: Any = None) -> str:
    """Do what the config asks for; returns a line that says what was done. ``api``: see `push_folder`.

    Raises:
        ConfigError: settings that are wrong or contradict; and what exporting, importing and pushing raise.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    plain["kind"] = plain.pop("import", None)
    config = parse(ExportConfig, plain, where="export")
    _check(config)
    if config.kind is not None:
        return f"{config.kind} written to {_import(config)}"

    from nemo_desta.sharing.export import export_model

    api = (api or open_api()) if config.push else None  # without a token nothing is written
    folder = export_model(
        config.model,
        config.output,
        llm=config.llm,
        encoders=config.encoders,
        name=config.repo_id,
        full_hashes=config.full_hashes,
        overwrite=config.overwrite,
        check_identity=config.check_identity,
        trust_remote_code=config.trust_remote_code,
        allow_targets=config.allow_targets,
    )
    if not config.push:
        return f"exported to {folder}"
    return f"exported to {folder}, pushed to {push_folder(folder, config.repo_id, private=config.private, api=api)}"


def _import(config: ExportConfig) -> Path:
    from nemo_desta.core.folder import is_model_folder
    from nemo_desta.sharing.place import check_place, whole_folder
    from nemo_desta.sharing.released import write_released

    output = Path(config.output).expanduser().absolute()
    place = {"kind": "import", "is_earlier": is_model_folder, "overwrite": config.overwrite}
    check_place(output, Path(config.source).expanduser(), **place)
    with whole_folder(output) as part:
        write_released(config.kind, config.source, part, llm=config.llm, encoders=config.encoders)
    return output


def _check(config: ExportConfig) -> None:
    if (config.model is None) == (config.kind is None):
        raise ConfigError("give model=<folder> to export, or import=<desta25|desta2|alarm> source=<folder>")
    if config.output is None:
        raise ConfigError("output (the folder to write) must be given")
    if (config.kind is None) != (config.source is None):
        raise ConfigError("import (the kind of released model) and source (its folder) go together")
    if config.kind is not None and (given := [name for name in EXPORT_ONLY if getattr(config, name)]):
        raise ConfigError(f"{', '.join(given)}: for exports; import first, then export what was written")
    if config.push:
        check_repo_id(config.repo_id)
    elif config.private:
        raise ConfigError("private=true goes with push=true")
