"""Read the config and selected tensors of a Hugging Face checkpoint (a folder or a hub id), and no others."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import safe_open
from torch import nn

from nemo_desta.perception.tensor_files import load_tensors
from nemo_desta.sources import inside

CONFIG = "config.json"
SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
#: Endings of a weight-normalised convolution's two tensors, in torch before 2.0 and since.
WEIGHT_NORM = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
WHERE = (
    "Give a folder that holds it or a hub id 'owner/name' (which needs network access, or a filled cache "
    "when HF_HUB_OFFLINE is set)"
)


def load_config(path_or_id: str) -> dict[str, Any]:
    """The config.json of a checkpoint.

    Raises:
        FileNotFoundError: there is none.
    """
    file = _find(path_or_id, CONFIG)
    if file is None:
        raise FileNotFoundError(f"'{path_or_id}': no {CONFIG} there. {WHERE}")
    return json.loads(file.read_text(encoding="utf-8"))


def load_weights(model: nn.Module, path_or_id: str, *, dtype: torch.dtype) -> None:
    """Fill a module that was built on the meta device with its tensors of a checkpoint, converted to ``dtype``.

    Raises:
        FileNotFoundError, ValueError: as `load_part`.
    """
    weights = load_part(path_or_id, model.state_dict().keys())
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    model.load_state_dict(cast, assign=True)


def load_part(path_or_id: str, names: Iterable[str], *, optional: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Tensors ``names`` of one sub-module of a checkpoint, on the CPU, in their stored dtype.

    The checkpoint may put any prefix before the names; the prefix that finds most of them is used. The names of a
    weight norm before torch 2.0 (``weight_g``, ``weight_v``) are read as today's, and the other way round. A name that
    ends in one of ``optional`` may be missing. Safetensors are preferred, one file or shards; ``pytorch_model.bin`` is
    read with ``weights_only=True``.

    Raises:
        FileNotFoundError: no weight file of the three formats.
        ValueError: a tensor is missing.
    """
    names = {name: _modern(name) for name in names}
    files, read = _stored(path_or_id)
    stored = {_modern(key): key for key in files}
    prefix = _prefix(stored, set(names.values()))
    keys = {name: stored[prefix + modern] for name, modern in names.items() if prefix + modern in stored}
    missing = [name for name in names if name not in keys and not name.endswith(optional)]
    if missing:
        raise ValueError(
            f"'{path_or_id}': {len(missing)} of {len(names)} tensors are not in the checkpoint, first '{missing[0]}' "
            f"(most names fit after the prefix '{prefix}'; the checkpoint starts with {sorted(files)[:3]})"
        )
    found = {}
    for file in sorted({files[key] for key in keys.values()}):
        found |= read(file, {name: key for name, key in keys.items() if files[key] == file})
    return found


def _stored(path_or_id: str) -> tuple[dict[str, str], Callable[[str, dict[str, str]], dict[str, torch.Tensor]]]:
    """The file of each stored tensor, and a reader of one file: its name, wanted name -> stored name."""
    location = _locate(path_or_id)
    if location is None:
        raise FileNotFoundError(f"'{path_or_id}': no {SINGLE}, {INDEX} or {PICKLE} there. {WHERE}")
    kind, path = location
    if kind == PICKLE:
        tensors = load_tensors(path, mmap=True)
        return dict.fromkeys(tensors, PICKLE), lambda _, keys: {name: tensors[key] for name, key in keys.items()}

    def read(file: str, keys: dict[str, str]) -> dict[str, torch.Tensor]:
        found = _find(path_or_id, inside(Path(path_or_id), file).name)
        if found is None:
            raise FileNotFoundError(f"'{path_or_id}': {INDEX} names the shard '{file}', which is not there")
        with safe_open(found, "pt") as tensors:
            return {name: tensors.get_tensor(key) for name, key in keys.items()}

    if kind == INDEX:
        return json.loads(path.read_text())["weight_map"], read
    with safe_open(path, "pt") as tensors:
        return dict.fromkeys(tensors.keys(), SINGLE), read


def _locate(path_or_id: str) -> tuple[str, Path] | None:
    for kind in (SINGLE, INDEX, PICKLE):
        file = _find(path_or_id, kind)
        if file is not None:
            return kind, file
    return None


def _find(path_or_id: str, name: str) -> Path | None:
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(path_or_id, name))
    except (EntryNotFoundError, HFValidationError):  # no such file; neither a folder nor a hub id
        return None


def _modern(name: str) -> str:
    for old, new in WEIGHT_NORM.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _prefix(stored: Iterable[str], names: set[str]) -> str:
    """What stands before most of ``names``."""
    counts: Counter[str] = Counter()
    for key in stored:
        starts = [0, *(i + 1 for i, letter in enumerate(key) if letter == ".")]
        counts.update(key[:start] for start in starts if key[start:] in names)
    return counts.most_common(1)[0][0] if counts else ""
