"""Lightning checkpoints that are read with ``weights_only=True`` and written atomically.

A checkpoint from an untrusted source is data, never code: only tensors and plain types are unpickled. A save goes to a
temporary file first, so that a kill during a save leaves the previous checkpoint intact.
"""

import enum
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class SafeCheckpointIO(TorchCheckpointIO):
    """Drop-in ``CheckpointIO`` for the Trainer's plugins."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        torch.save(plain(checkpoint), part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)

    def load_checkpoint(self, path: Any, map_location: Callable | None = None, **_: Any) -> dict[str, Any]:
        """Check every byte of a checkpoint and read it.

        Raises:
            FileNotFoundError: nothing there. DamagedCheckpoint: its bytes are not those that were written.
            ValueError: the file holds more than tensors and plain types.
        """
        check_whole(Path(path))
        return read_checkpoint(Path(path), map_location=map_location or "cpu")


class DamagedCheckpoint(ValueError):
    """A file whose bytes are not those that were written; the message names the file and the damage."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"'{path}' is damaged: {reason}")
        self.path = path


def check_whole(path: Path) -> None:
    """Compare every member of a checkpoint with the checksum that was written with it (about 1 GB/s).

    Raises:
        FileNotFoundError: nothing there. DamagedCheckpoint: truncated, empty, or with changed bytes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at '{path}'")
    with path.open("rb") as file:
        try:
            wrong = zipfile.ZipFile(file).testzip()
        except Exception as error:  # a damaged archive may raise anything
            reason = "it is empty" if path.stat().st_size == 0 else f"{type(error).__name__}: {error}"
            raise DamagedCheckpoint(path, reason) from error
    if wrong is not None:
        raise DamagedCheckpoint(path, f"the checksum of its part {wrong} is wrong")


def read_checkpoint(path: Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint; with ``mmap`` tensors are read when they are used.

    Raises:
        FileNotFoundError: nothing there. DamagedCheckpoint: truncated, empty, or changed where it is read.
        ValueError: the file holds more than tensors and plain types.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at '{path}'")
    if not zipfile.is_zipfile(path):
        check_whole(path)  # raises with the reason
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except (MemoryError, FileNotFoundError):
        raise
    except Exception as error:
        check_whole(path)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"'{path}' is refused: it holds more than tensors and plain types ({reason})") from error


def plain(value: Any, where: str = "checkpoint") -> Any:
    """The same nested value with only tensors and plain types, which ``weights_only`` can read.

    Raises:
        TypeError: anything else; the message says where.
    """
    if isinstance(value, torch.Tensor) or value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, dict):
        return {plain(key, where): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, set, frozenset)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return tuple(plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return plain(value.value, where)
    if isinstance(value, (int, float, str)):  # subclasses, numpy's float64 among them
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # numpy scalars
        return value.item()
    raise TypeError(f"{where} is a {type(value).__name__}: checkpoints hold tensors and plain types only")
