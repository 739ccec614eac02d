"""Reads untrusted weights without running code: safetensors, or torch files with ``weights_only=True``."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from nemo_desta.errors import ConfigError
from nemo_desta.perception.tensor_files import load_tensors
from nemo_desta.sources import fetch_folder, inside

#: File names in order of preference.
WEIGHT_FILES = ("model.safetensors", "qformer_connector.pth", "pytorch_model.bin", "model.pt", "connector.pt")
COPIED_BYTES = 1 << 20  # at a time


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files by name. Each is read when it is asked for, so no whole file is in memory."""

    def __init__(self, files: Mapping[str, Path]):
        """``files``: the file of each tensor."""
        self._files = dict(files)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name).clone()  # the library's own tensor keeps the whole file mapped

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def copy(self, prefix: str, output: Path) -> None:
        """Write the tensors below ``prefix``, which is cut off, to one safetensors file, 1 MiB at a time."""
        sources = {name: self._files[name] for name in self if name.startswith(prefix)}
        headers = {file: _header(file) for file in set(sources.values())}
        places, described, end = [], {"__metadata__": {"format": "pt"}}, 0
        for name, file in sources.items():
            entries, data = headers[file]
            if name not in entries:
                raise ConfigError(f"'{file}' lacks the tensor '{name}', which its index puts there")
            begin, stop = entries[name]["data_offsets"]
            offsets = {"data_offsets": [end, end + stop - begin]}
            described[name.removeprefix(prefix)] = {**entries[name], **offsets}
            places.append((file, data + begin, stop - begin))
            end += stop - begin
        text = json.dumps(described).encode()
        text += b" " * (-len(text) % 8)
        with output.open("wb") as copy:
            copy.write(len(text).to_bytes(8, "little") + text)
            for file, begin, size in places:
                with file.open("rb") as stream:
                    stream.seek(begin)
                    for start in range(0, size, COPIED_BYTES):
                        copy.write(stream.read(min(COPIED_BYTES, size - start)))


def local_download(folder: str | Path) -> Path:
    """The folder; a hub id is downloaded first.

    Raises:
        FileNotFoundError: no such folder. ConfigError: it is a file.
    """
    if Path(folder).expanduser().is_file():
        raise ConfigError(f"'{folder}' is a file; give the folder that holds it")
    return fetch_folder(str(folder), ["*.json", "*.safetensors", "*.pth", "*.bin"])


def open_weights(folder: Path) -> Mapping[str, Tensor]:
    """All tensors of a model in a folder, from all shards; `StoredTensors` unless the file is a torch file.

    Raises:
        FileNotFoundError: no weights. ConfigError: not a state dict, a file that would run code, a shard path outside.
    """
    if (index := folder / "model.safetensors.index.json").is_file():
        shards = json.loads(index.read_text())["weight_map"]
        return StoredTensors({name: inside(folder, shard) for name, shard in shards.items()})
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no weights in '{folder}': none of {', '.join(WEIGHT_FILES)}")
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            return StoredTensors(dict.fromkeys(stored.keys(), file))
    state = load_tensors(file)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"'{file}' is no state dict: a mapping of names to tensors is expected")
    return state


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file, and where its data begins."""
    with safe_open(file, "pt"):
        pass  # the library refuses sizes and offsets that do not fit the file
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(size)), 8 + size
