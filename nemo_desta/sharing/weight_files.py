"""Reads untrusted weights without running code: safetensors, or torch files with ``weights_only=True``."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from nemo_desta.errors import ConfigError
from nemo_desta.perception.tensor_files import load_tensors
from nemo_desta.sources import fetch_folder, inside

#: File names in order of preference.
WEIGHT_FILES = ("model.safetensors", "qformer_connector.pth", "pytorch_model.bin", "model.pt", "connector.pt")


def local_download(folder: str | Path) -> Path:
    """The folder; a hub id is downloaded first.

    Raises:
        FileNotFoundError: no such folder. ConfigError: it is a file.
    """
    if Path(folder).expanduser().is_file():
        raise ConfigError(f"'{folder}' is a file; give the folder that holds it")
    return fetch_folder(str(folder), ["*.json", "*.safetensors", "*.pth", "*.bin"])


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model in a folder, from all shards.

    Raises:
        FileNotFoundError: no weights. ConfigError: not a state dict, a file that would run code, a shard path outside.
    """
    if (index := folder / "model.safetensors.index.json").is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [inside(folder, shard) for shard in shards]
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no weights in '{folder}': none of {', '.join(WEIGHT_FILES)}")
    if file.suffix == ".safetensors":
        return load_file(file)
    state = load_tensors(file)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"'{file}' is no state dict: a mapping of names to tensors is expected")
    return state
