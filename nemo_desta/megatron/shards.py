"""Reads the tensors of a Hugging Face folder block by block; a whole tensor is never in memory."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from nemo_desta.errors import ConfigError
from nemo_desta.megatron.param_mapping import Slices
from nemo_desta.sources import fetch_folder

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
#: Before the names of the LLM in a model that has a vision tower, too.
TEXT_PART = "language_model."
#: Bytes per read; at most about twice as many are mapped into memory.
BLOCK_BYTES = 1 << 23


class Shards:
    """The tensors of a Hugging Face folder by name, read block by block from its safetensors files.

    Of a model with a vision tower only the text part is read, by the names that it would have alone.
    """

    _prefix = ""

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / INDEX_FILE
        if index.exists():
            self.files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        elif (folder / SINGLE_FILE).exists():
            with safe_open(folder / SINGLE_FILE, framework="pt") as file:
                self.files = dict.fromkeys(file.keys(), SINGLE_FILE)
        else:
            raise ConfigError(f"no {SINGLE_FILE} or {INDEX_FILE} in '{folder}': the LLM's weights must be safetensors")
        if any(name.startswith(TEXT_PART) for name in self.files):
            texts = {name: file for name, file in self.files.items() if name.startswith(TEXT_PART)}
            self.files = {name.removeprefix(TEXT_PART): file for name, file in texts.items()}
            self._prefix = TEXT_PART
        self._name = ""
        self._file: Any = None
        self._mapped = 0

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slices(name).get_shape())

    def blocks(self, name: str, where: Slices) -> Iterator[tuple[int, Tensor]]:
        """``tensor[where]`` in blocks of rows: (first row of the block within ``where``, values).

        A block is a view of the mapped file: drop it before the next block is read.
        """
        shape = self.shape(name)
        row_bytes = 4 * math.prod(shape[1:])  # upper bound: weights have 4 bytes or fewer
        step = max(1, BLOCK_BYTES // row_bytes)
        for start in range(where[0].start, where[0].stop, step):
            stop = min(start + step, where[0].stop)
            values = self._slices(name)[(slice(start, stop), *where[1:])]
            self._mapped += (stop - start) * row_bytes
            yield start - where[0].start, values
            del values

    def _slices(self, name: str) -> Any:
        # pages of a mapped file count as this process's memory until it is unmapped
        if self._name != self.files[name] or self._mapped > BLOCK_BYTES:
            self.close()
            self._name = self.files[name]
            self._file = safe_open(self.folder / self._name, framework="pt")
        return self._file.get_slice(self._prefix + name)

    def close(self) -> None:
        """Unmap the file."""
        self._name, self._file, self._mapped = "", None, 0


def weights_folder(source: str | Path) -> Path:
    """Folder of the LLM's safetensors: a local one, or the hub's snapshot, fetched if it is not cached."""
    return fetch_folder(str(source), ["*.safetensors", INDEX_FILE])
