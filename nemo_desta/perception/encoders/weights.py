"""Read the config and selected tensors of a Hugging Face checkpoint (a folder or a hub id), and no others."""

import json
from collections.abc import Iterable
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


def load_weights(model: nn.Module, path_or_id: str, *, prefixes: tuple[str, ...], dtype: torch.dtype) -> None:
    """Fill a module that was built on the meta device with its tensors of a checkpoint, converted to ``dtype``.

    ``prefixes`` and errors: see `load_part`.
    """
    weights = load_part(path_or_id, model.state_dict().keys(), prefixes=prefixes)
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    model.load_state_dict(cast, assign=True)


def load_part(path_or_id: str, names: Iterable[str], *, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Tensors ``names`` of one sub-module of a checkpoint, on the CPU, in their stored dtype.

    ``prefixes``: prefixes that every name may have in the checkpoint; the one that finds most names is used.
    Safetensors are preferred, one file or shards; ``pytorch_model.bin`` is read with ``weights_only=True``.

    Raises:
        FileNotFoundError: no weight file of the three formats.
        ValueError: a tensor is missing.
    """
    names = list(names)
    location = _locate(path_or_id)
    if location is None:
        raise FileNotFoundError(f"'{path_or_id}': no {SINGLE}, {INDEX} or {PICKLE} there. {WHERE}")
    kind, file = location
    if kind == PICKLE:
        tensors = load_tensors(file, mmap=True)
        prefix = _prefix(path_or_id, names, set(tensors), prefixes)
        return {name: tensors[prefix + name] for name in names}
    if kind == INDEX:
        shards = json.loads(file.read_text())["weight_map"]
    else:
        with safe_open(file, "pt") as tensors:
            shards = dict.fromkeys(tensors.keys(), SINGLE)
    prefix = _prefix(path_or_id, names, set(shards), prefixes)
    found = {}
    for shard in sorted({shards[prefix + name] for name in names}):
        shard_file = _find(path_or_id, inside(Path(path_or_id), shard).name)
        if shard_file is None:
            raise FileNotFoundError(f"'{path_or_id}': {INDEX} names the shard '{shard}', which is not there")
        with safe_open(shard_file, "pt") as tensors:
            found |= {n: tensors.get_tensor(prefix + n) for n in names if shards[prefix + n] == shard}
    return found


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


def _prefix(path_or_id: str, names: list[str], stored: set[str], prefixes: tuple[str, ...]) -> str:
    best = min(prefixes, key=lambda prefix: sum(prefix + name not in stored for name in names))
    missing = [name for name in names if best + name not in stored]
    if missing:
        raise ValueError(
            f"'{path_or_id}': {len(missing)} of {len(names)} tensors are not in the checkpoint, first '{missing[0]}' "
            f"(looked for with the prefixes {list(prefixes)}; the checkpoint starts with {sorted(stored)[:3]})"
        )
    return best
