"""Finds the checkpoint to resume from: the newest intact one. Damaged files are named in the log and renamed.

exp_manager reads the file called ``*last.ckpt`` and fails if there are two; so the folder is cleaned up first.
"""

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.errors import ConfigError
from nemo_desta.training.checkpoint_io import DamagedCheckpoint, check_whole, read_checkpoint

logger = logging.getLogger(__name__)

LAST = "*last.ckpt"
DAMAGED = ".damaged"
#: What a kill leaves behind: temporary files, and NeMo's marks of an unfinished save. Our saves are atomic, so the
#: marks have no meaning here.
LEFTOVERS = ("*.ckpt.part", "*-unfinished")


class NoWholeCheckpoint(ConfigError):
    """All checkpoints of a run are damaged; the message names each."""


class Found(NamedTuple):
    """A checkpoint to resume from. ``saved``: its content; tensors are memory-mapped."""

    path: Path
    step: int
    saved: dict[str, Any]


def find_checkpoint(folder: Path, *, tidy: bool) -> Found | None:
    """The intact checkpoint in ``folder`` with the most steps; None if there is no checkpoint.

    Args:
        tidy: this process (the first of a run) also renames damaged files and removes what a kill left behind; the
            other processes wait until that is done.

    Raises:
        NoWholeCheckpoint: all are damaged. ValueError: one holds more than tensors and plain types.
    """
    if tidy:
        for pattern in LEFTOVERS:
            for path in folder.rglob(pattern):
                path.unlink(missing_ok=True)
    found, damaged = [], []
    for path in sorted(folder.rglob("*.ckpt")):
        try:
            saved = read_checkpoint(path, mmap=True)
            found.append((saved["global_step"], path.match(LAST), path, saved))
        except DamagedCheckpoint as error:
            damaged.append(error)
        except FileNotFoundError:  # the first process has just renamed it
            continue
    found.sort(key=lambda item: item[:3])
    chosen = None
    while found and chosen is None:
        step, _, path, saved = found.pop()
        try:
            check_whole(path)
            chosen = Found(path, step, saved)
        except DamagedCheckpoint as error:
            damaged.append(error)
        except FileNotFoundError:
            continue
    if chosen is None and damaged:
        listed = "\n".join(sorted(f"  {error}" for error in damaged))
        raise NoWholeCheckpoint(
            f"none of the checkpoints in {folder} can be read:\n{listed}\nPut back a copy of one of them, or remove "
            "them to begin anew"
        )
    if not tidy:
        until = time.monotonic() + 60
        while len(list(folder.rglob(LAST))) > 1 and time.monotonic() < until:
            time.sleep(0.1)
        return chosen
    for error in damaged:
        aside = error.path.with_name(error.path.name + DAMAGED)
        error.path.replace(aside)
        logger.warning("%s; it is renamed to %s", error, aside.name)
    for path in folder.rglob(LAST) if chosen is not None else ():
        if path != chosen.path:  # killed between saving the new file and removing the old one
            logger.info("removing %s: %s is newer and intact", path, chosen.path.name)
            path.unlink()
    return chosen
