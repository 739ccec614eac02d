"""Names of frozen parts in an export: hub ids instead of paths of this machine."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.config import ModelConfig, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.sources import PACKAGE_SCHEME, is_local, local_folder, resolve_source

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Reference(NamedTuple):
    """``source``: the part's name. ``reachable``: whether that name loads it. ``revision``: the hub's commit.

    ``guess``: the name comes from the part's own config, and may be a folder of its author.
    """

    source: str
    reachable: bool
    revision: str | None = None
    guess: bool = False


def refer(source: str) -> Reference:
    """Name a part: its hub id if one is known, otherwise the name of its folder or file."""
    if source.startswith(PACKAGE_SCHEME):
        return Reference(source, True)
    if not is_local(source):
        folder = local_folder(source)
        return Reference(source, True, _revision(folder) if folder else None)
    place = Path(resolve_source(source)).expanduser().absolute()
    if (revision := _revision(place)) and (name := place.parents[1].name).startswith("models--"):
        return Reference(name.removeprefix("models--").replace("--", "/"), True, revision)
    config = place / "config.json"
    known = json.loads(config.read_text()).get("_name_or_path", "") if config.is_file() else ""
    if HUB_ID.fullmatch(known) and not Path(known).exists():
        return Reference(known, True, guess=True)
    return Reference(place.name, False)


def refer_all(
    config: ModelConfig, *, llm: str | None = None, encoders: Mapping[str, str] | None = None
) -> tuple[ModelConfig, dict[str, Reference]]:
    """The config without local paths, and the references by part. ``llm``, ``encoders``: names to use instead.

    Raises:
        ConfigError: ``encoders`` names an encoder that the model does not have.
    """
    named = config.perception.encoders
    for name in encoders or {}:
        if name not in named:
            raise ConfigError(f"encoders names '{name}'.{nearest(name, named)}")
    references = {"llm": refer(llm or config.llm.path)}
    changed = {}
    for name, knobs in named.items():
        changed[name] = dict(knobs)
        if isinstance(path := (encoders or {}).get(name) or knobs.get("path"), str):
            references[f"encoders.{name}"] = reference = refer(path)
            changed[name]["path"] = reference.source
    config = replace(
        config,
        llm=replace(config.llm, path=references["llm"].source, tokenizer=None),
        perception=replace(config.perception, encoders=changed, init_from=None),
    )
    return config, references


def without_paths(value: Any) -> Any:
    """A plain value in which absolute paths are reduced to their last component."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~/")) and (value.count("/") > 1 or Path(value).exists()):
        return Path(value).name
    return value


def _revision(folder: Path) -> str | None:
    return folder.name if folder.parent.name == "snapshots" else None
