"""The fingerprint of a frozen part, stored in checkpoints, so that a projector is used with the LLM of its training.

It covers config, tokenizer, the header of every safetensors file and sampled blocks of its data, which takes seconds
for a 16 GB LLM. Generation settings, model cards and other files are left out: they do not change the weights.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from nemo_desta.errors import ConfigError
from nemo_desta.sources import file_digest, inside, sampled_blocks

#: Hashed whole when present.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
SMALL_FILES = ("config.json", *TOKENIZER_FILES)
SAMPLED = "sampled:"
#: Files beside the weights that decide what an LLM answers; those that exist count in its short fingerprint.
ANSWER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class IdentityMismatch(ConfigError):
    """A frozen part is not the one that a projector was trained with."""


class Difference(NamedTuple):
    """A changed file. ``found``: None where the file is missing."""

    file: str
    expected: str
    found: str | None

    def __str__(self) -> str:
        found = "which is not there" if self.found is None else f"found {_short(self.found)}"
        return f"{self.file} (expected {_short(self.expected)}, {found})"


def fingerprint(path: str | Path, *, full: bool = False, more: Iterable[str] = ()) -> dict[str, str]:
    """Map of file name to sha256 (sampled for weights unless ``full``) for a folder or one file.

    ``more``: further files that count if they are there, such as the settings of an encoder's features.

    Raises:
        FileNotFoundError: nothing to identify at ``path``.
    """
    path = Path(path)
    weights = [path] if path.is_file() else _weight_files(path)
    small = [path / name for name in (*SMALL_FILES, *more) if (path / name).is_file()]
    hashes = {file.name: file_digest(file) if full else _sampled(file) for file in weights}
    hashes |= {file.name: file_digest(file) for file in small}
    if not hashes:
        raise FileNotFoundError(f"no config, tokenizer or weights at '{path}'")
    return dict(sorted(hashes.items()))


def differences(saved: Mapping[str, str], path: str | Path) -> list[Difference]:
    """Files of ``path`` that have changed since its fingerprint was ``saved``.

    A missing config or weight file counts. Additional files do not count, nor does a missing tokenizer, since a model
    folder has its own. A part that is a single file may have been renamed.

    Raises:
        ConfigError: a fingerprint that names files outside the part.
    """
    path = Path(path)
    changed = []
    for name, expected in saved.items():
        file = inside(path, name)
        file = path if path.is_file() and len(saved) == 1 else file
        if not file.is_file():
            found = None
        else:
            found = _sampled(file) if expected.startswith(SAMPLED) else file_digest(file)
        if found != expected and not (found is None and name in TOKENIZER_FILES):
            changed.append(Difference(name, expected, found))
    return changed


def short_fingerprint(folder: Path) -> str:
    """12 characters for all that decides what an LLM answers, generation settings and chat template included.

    Rows hold this value, so its definition must stay: whole small files, and of weights the size and sampled blocks.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name in ANSWER_FILES:
            digest.update(file.name.encode() + file.read_bytes())
        elif file.suffix in (".safetensors", ".bin"):
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            for block in sampled_blocks(file):
                digest.update(block)
    return digest.hexdigest()[:12]


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that loaders read; hub repositories often hold the same weights in other formats too."""
    index = folder / "model.safetensors.index.json"
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [file for name in names if (file := inside(folder, name)).is_file()]
    return sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])


def _sampled(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            (header,) = struct.unpack("<Q", stream.read(8))
            digest.update(stream.read(min(header, size)))
    for block in sampled_blocks(file):
        digest.update(block)
    return SAMPLED + digest.hexdigest()


def _short(value: str) -> str:
    return value.removeprefix(SAMPLED)[:12]
