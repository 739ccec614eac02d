"""What a frozen part is: a short, quick fingerprint kept in checkpoints, so that a projector meets the LLM it knows.

The fingerprint covers config, tokenizer, the header of every safetensors file and sampled blocks of its data: seconds
for a 16 GB LLM. `full=True` hashes every byte.
"""

import hashlib
import struct
from pathlib import Path

#: Files that are hashed whole when present; generation settings and cards do not change what the weights are.
SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".bin")
BLOCK_BYTES = 65_536
NUM_BLOCKS = 16


def fingerprint(path: str | Path, *, full: bool = False) -> dict[str, str]:
    """Map of file name to sha256 (sampled for weights unless ``full``) for a folder or one file.

    Raises:
        FileNotFoundError: nothing to identify at ``path``.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    hashes = {}
    for file in files:
        if file.suffix in WEIGHT_SUFFIXES:
            hashes[file.name] = _whole(file) if full else _sampled(file)
        elif file.name in SMALL_FILES:
            hashes[file.name] = _whole(file)
    if not hashes:
        raise FileNotFoundError(f"no config, tokenizer or weights at '{path}'")
    return hashes


def differences(saved: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of files whose content changed or which are gone; extra files do not matter."""
    return [name for name, value in saved.items() if found.get(name) != value]


def _whole(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sampled(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if file.suffix == ".safetensors":
            (header,) = struct.unpack("<Q", stream.read(8))
            digest.update(stream.read(min(header, size)))
        for i in range(NUM_BLOCKS):
            stream.seek(max(0, (size - BLOCK_BYTES) * i // (NUM_BLOCKS - 1)))
            digest.update(stream.read(BLOCK_BYTES))
    return "sampled:" + digest.hexdigest()
