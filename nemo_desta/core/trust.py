"""Which settings an untrusted config may hold: the one check of every loader of model folders and checkpoints.

Some settings of a model's config can run code: ``trust_remote_code`` runs Python files of the LLM's folder, and a
dotted name imports and calls anything that is installed. In the user's own training config they are the user's
decision. In a config that came with weights they are refused by name, unless the caller grants them
(docs/security.md).
"""

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nemo_desta.config import PerceptionConfig
from nemo_desta.errors import ConfigError
from nemo_desta.perception.registry import ENCODERS, PROJECTORS

#: Where the classes of optimisers and learning rate schedules that need no grant are defined, and their base class.
OPTIMIZERS = ("torch.optim.", "nemo.core.optim.", "transformers.optimization.")
BASES = {
    "optimizer": ("torch.optim", "Optimizer"),
    "lr_scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
}


class UntrustedConfig(ConfigError):
    """An untrusted file holds a setting that only the caller may decide; the message says what to pass."""


@dataclass(frozen=True)
class Grant:
    """What the caller allows: to run Python files of the LLM's folder, and to import and call these dotted names."""

    trust_remote_code: bool = False
    allow_targets: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.allow_targets, str):
            raise ConfigError(f"allow_targets is a list of dotted names, found the text '{self.allow_targets}'")


NOTHING = Grant()


def check_model(model: Any, source: Any, grant: Grant) -> dict[str, Any]:
    """Check the ``model`` section of an untrusted file, named ``source``; returns it as a plain dict.

    ``llm.trust_remote_code`` of the result is the one of ``grant``.

    Raises:
        UntrustedConfig: settings that can run code and were not granted, each by its key and value.
    """
    if not isinstance(model, Mapping):
        raise ConfigError(f"'{source}': 'model' must be a mapping, found {type(model).__name__}")
    found = []
    for path, value in _walk(model, "model"):
        key = path.rpartition(".")[2]
        if key == "trust_remote_code" and value and not grant.trust_remote_code:
            found.append(f"{path}={value} (runs Python files of that folder: pass trust_remote_code=True)")
        elif isinstance(value, str) and "${" in value:
            found.append(f"{path}={value!r} (an interpolation, which no grant allows: write the value itself)")
        elif "${" in key:
            found.append(f"the key {path} (an interpolation, which no grant allows)")
        elif key == "attn_implementation" and "/" in str(value) and not grant.trust_remote_code:
            found.append(f"{path}={value!r} (runs a kernel from the hub: pass trust_remote_code=True)")
        elif key == "_target_" and not (_is_registered(path, value) or _is_optimizer(path, value)):
            if value not in grant.allow_targets:
                found.append(f"{path}={value!r} (imported and called: pass allow_targets=[{value!r}])")
    for path, name, known in _factory_names(model):
        if "." in name and name not in known and name not in grant.allow_targets:
            found.append(f"{path}={name!r} (imported and called: pass allow_targets=[{name!r}])")
    if found:
        raise UntrustedConfig(
            f"'{source}' holds settings that only you may decide: {'; '.join(found)}. With them its authors can run "
            "any program on this machine, so grant them only if you trust the authors (docs/security.md)"
        )
    llm = model.get("llm")
    if not isinstance(llm, Mapping):
        return dict(model)  # `parse` says what is wrong with it
    return {**model, "llm": {**llm, "trust_remote_code": grant.trust_remote_code}}


@contextmanager
def code_named(source: str) -> Iterator[None]:
    """Around transformers' loaders: refuse an LLM or tokenizer that needs Python files of its folder.

    Raises:
        UntrustedConfig: transformers would have to run code of ``source``.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UntrustedConfig(
            f"'{source}' can only be loaded by running Python files that came with it. If you trust their "
            "authors: trust_remote_code=True (from_pretrained), trust_remote_code=true (commands), "
            "model.llm.trust_remote_code=true (a training config)"
        ) from error


def own_targets(perception: PerceptionConfig) -> list[str]:
    """The dotted names of encoders in use and projector that whoever opens the model must grant."""
    names = perception.encoders if perception.use is None else perception.use
    parts = [({"name": name, **perception.encoders[name]}, ENCODERS) for name in names]
    parts.append(({"name": "window", **perception.projector}, PROJECTORS))
    found = ((part.get("_target_", part["name"]), registry) for part, registry in parts)
    return [name for name, registry in found if "." in name and name not in registry]


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every entry below a plain value with its path. Iterative, since an untrusted file may be nested deeply."""
    open_values = [(path, value)]
    while open_values:
        path, value = open_values.pop()
        if isinstance(value, Mapping):
            entries = [(f"{path}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            entries = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
        else:
            continue
        yield from entries
        open_values += reversed(entries)


def _factory_names(model: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Key, value and registered names of whatever selects an encoder or the projector, where ``_target_`` does not.

    For an encoder that is its ``name`` or the key of its section.
    """
    perception = model.get("perception")
    perception = perception if isinstance(perception, Mapping) else {}
    encoders = perception.get("encoders")
    for label, knobs in (encoders if isinstance(encoders, Mapping) else {}).items():
        if isinstance(knobs, Mapping) and "_target_" not in knobs:
            path = f"model.perception.encoders.{label}"
            key, name = (f"{path}.name", knobs["name"]) if "name" in knobs else (f"the key {path}", label)
            yield key, str(name), list(ENCODERS)
    projector = perception.get("projector")
    if isinstance(projector, Mapping) and "_target_" not in projector and "name" in projector:
        yield "model.perception.projector.name", str(projector["name"]), list(PROJECTORS)


def _is_registered(path: str, value: Any) -> bool:
    """Whether this is the ``_target_`` of an encoder or of the projector, and a registered name."""
    if path == "model.perception.projector._target_":
        return value in PROJECTORS
    return bool(re.fullmatch(r"model\.perception\.encoders\..+\._target_", path)) and value in ENCODERS


def _is_optimizer(path: str, value: Any) -> bool:
    """Whether this is the class of an optimiser or schedule of torch, NeMo or transformers.

    The prefix alone does not tell (``torch.optim.adam.torch.load`` has it): the module must be importable by itself,
    and the class must be defined in one of these packages. Where the package is not installed, nothing of it can run.
    """
    section = path.removeprefix("model.").removesuffix("._target_")
    if section not in BASES or not isinstance(value, str) or not value.startswith(OPTIMIZERS):
        return False
    if importlib.util.find_spec(value.partition(".")[0]) is None:
        return True
    module, _, name = value.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    if not f"{getattr(found, '__module__', '')}.".startswith(OPTIMIZERS):
        return False
    if section == "lr_scheduler" and module == "transformers.optimization":
        return bool(re.fullmatch(r"get_\w*schedule\w*", name))
    home, base = BASES[section]
    bases = tuple(c for c in (getattr(importlib.import_module(home), n, None) for n in (base, f"_{base}")) if c)
    return isinstance(found, type) and issubclass(found, bases)
