"""Strangers' weights from a folder: safetensors, or torch files with ``weights_only=True``, which run no code."""

import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from nemo_desta.config import ConfigError
from nemo_desta.sources import is_local

#: Looked for in this order.
WEIGHT_FILES = ("model.safetensors", "qformer_connector.pth", "pytorch_model.bin", "model.pt", "connector.pt")


def local_download(folder: str | Path) -> Path:
    """The folder, fetched first if it is a hub id.

    Raises:
        FileNotFoundError: no such folder. ConfigError: a file.
    """
    found = Path(folder).expanduser()
    if found.is_dir():
        return found
    if found.is_file():
        raise ConfigError(f"'{folder}' is a file; give the folder that holds it")
    if is_local(str(folder)):
        raise FileNotFoundError(f"no folder '{folder}'")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(folder), allow_patterns=["*.json", "*.safetensors", "*.pth", "*.bin"]))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model in a folder, shards put together.

    Raises:
        FileNotFoundError: no weights. ConfigError: a file that is no state dict, would run code, or a shard outside.
    """
    if (index := folder / "model.safetensors.index.json").is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if escaped := [name for name in shards if Path(name).name != name]:
            raise ConfigError(f"'{index}' names a shard outside its folder: '{escaped[0]}'")
        return {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no weights in '{folder}': none of {', '.join(WEIGHT_FILES)}")
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"'{file}' holds more than tensors and is not opened, since such a file can run code. Whoever made it can "
            "save its state dict alone: torch.save(model.state_dict(), ...)"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"'{file}' is no state dict: a mapping of names to tensors is expected")
    return state
