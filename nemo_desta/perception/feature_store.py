"""Tensors on disk by key, in shards that are written once: the storage below `feature_cache`.

A shard is a safetensors file, read as a memory map; its header holds a SHA-256 for each tensor. It is written under a
temporary name and renamed when complete, so a kill at any moment leaves no half-written shard. Several processes share
a folder: writes happen under one lock, and a reader finds new shards when it misses a key.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

logger = logging.getLogger(__name__)

SHARD = re.compile(r"[0-9a-f]{32}\.safetensors")
GROUP = re.compile(r"[0-9a-f]{16}")
PART, ABOUT, LOCK = ".part", "about.json", "lock"
#: A shard's time of last use is written at most this often by a process.
TOUCH_SECS = 30.0
#: Shards that are kept open.
MAX_OPEN = 512


class FeatureStore:
    """Tensors of one ``group``, in a folder of its own below ``root``.

    Args:
        about: what the group holds, for people; its hash is the group's name.
        max_bytes: of all groups below ``root`` together; the shards that were used least recently are removed. None:
            no limit.
    """

    def __init__(self, root: Path, about: Mapping[str, Any], *, max_bytes: int | None = None) -> None:
        text = json.dumps(about, sort_keys=True, indent=1)
        self.root, self.max_bytes = root, max_bytes
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._shard_of: dict[str, str] = {}  # key -> name of its shard
        self._known: set[str] = set()  # names of the shards that were read
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._checked: set[str] = set()  # keys whose hash was compared
        self._touched: dict[str, float] = {}
        self._listed: int | None = None  # time of the folder's last change when it was listed
        self._full = False
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).is_file():
            _write_whole(self.folder / ABOUT, text)
        self._list()

    def __len__(self) -> int:
        return len(self._shard_of)

    def get(self, key: str) -> torch.Tensor | None:
        """The tensor of a key, a view of the file; None if it is not here, or was damaged and is removed now."""
        if key not in self._shard_of:
            self._list()
        if (name := self._shard_of.get(key)) is None:
            return None
        try:
            shard = self._shard(name)
            tensor = shard.get_tensor(key)
            if key not in self._checked and _digest(tensor) != shard.metadata()[key]:
                raise ValueError("the hash of its content is another one than when it was written")
        except FileNotFoundError:  # another process removed it
            self._forget(name)
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("feature cache: %s is damaged and removed, its clips are encoded again: %s", name, error)
            (self.folder / name).unlink(missing_ok=True)
            self._forget(name)
            return None
        self._checked.add(key)
        self._touch(name)
        return tensor

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the tensors that are not here yet as one shard. A disk error is logged and ends the writing."""
        if self._full or not tensors:
            return
        try:
            with locked(self.root):
                self._list(always=True)
                new = {key: tensor.contiguous() for key, tensor in tensors.items() if key not in self._shard_of}
                if new:
                    self._write(new)
        except OSError as error:
            self._full = True
            logger.warning("feature cache: nothing more is written to %s: %s", self.root, error)

    def _write(self, tensors: dict[str, torch.Tensor]) -> None:
        name = f"{uuid.uuid4().hex}.safetensors"
        part = self.folder / f"{name}{PART}"
        try:
            for left in self.folder.glob(f"*{PART}"):  # of a process that was killed: writers hold the lock
                left.unlink(missing_ok=True)
            save_file(tensors, part, metadata={key: _digest(tensor) for key, tensor in tensors.items()})
            size = part.stat().st_size
            if self.max_bytes is not None and not make_room(self.root, self.max_bytes - size):
                logger.warning(
                    "feature cache: %d clips take %d bytes, more than max_gb; they are not stored", len(tensors), size
                )
                return
            os.replace(part, self.folder / name)
        finally:
            part.unlink(missing_ok=True)
        self._known.add(name)
        self._shard_of.update(dict.fromkeys(tensors, name))

    def _list(self, *, always: bool = False) -> None:
        """Read the headers of shards that are new in the folder, and forget those that are gone."""
        changed = self.folder.stat().st_mtime_ns
        if changed == self._listed and not always:
            return
        names = {name for name in os.listdir(self.folder) if SHARD.fullmatch(name)}
        for name in self._known - names:
            self._forget(name)
        for name in names - self._known:
            self._known.add(name)
            try:
                self._shard_of.update(dict.fromkeys(self._shard(name).keys(), name))
            except FileNotFoundError:
                continue
            except (OSError, SafetensorError) as error:
                logger.warning("feature cache: %s is damaged and removed: %s", name, error)
                (self.folder / name).unlink(missing_ok=True)
        self._listed = changed

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, "pt")
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def _forget(self, name: str) -> None:
        self._known.discard(name)
        self._open.pop(name, None)
        gone = [key for key, shard in self._shard_of.items() if shard == name]
        for key in gone:
            del self._shard_of[key]
            self._checked.discard(key)

    def _touch(self, name: str) -> None:
        now = time.time()
        if now - self._touched.get(name, 0.0) >= TOUCH_SECS:
            self._touched[name] = now
            try:
                os.utime(self.folder / name)
            except OSError:  # removed by another process, or a folder that can only be read
                pass


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Only one process of the machine at a time is inside; the system frees the lock of a process that is killed."""
    with (root / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shards(root: Path) -> list[tuple[float, int, Path]]:
    """Time of last use, bytes and path of every shard of every group, the least recently used first."""
    found = []
    for group in os.scandir(root) if root.is_dir() else ():
        if not (GROUP.fullmatch(group.name) and group.is_dir()):
            continue
        for entry in os.scandir(group):
            if SHARD.fullmatch(entry.name):
                try:
                    stat = entry.stat()
                except FileNotFoundError:
                    continue
                found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
    return sorted(found)


def make_room(root: Path, max_bytes: int) -> bool:
    """Remove shards, the least recently used first, until ``max_bytes`` are left; False if that cannot be. The caller
    holds the lock."""
    if max_bytes < 0:
        return False
    found = shards(root)
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= size
    return True


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy()).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
