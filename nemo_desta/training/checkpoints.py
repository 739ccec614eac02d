"""Which checkpoint a run resumes from: the newest whole one. Damaged ones are named and set aside.

exp_manager takes whatever is called ``*last.ckpt`` and stops at two of them; so the folder is put in order before.
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
#: Left by a kill: files under their temporary name, and NeMo's marks of a save that was under way. Our saves are whole
#: when they have their name, so that the marks say nothing.
LEFTOVERS = ("*.ckpt.part", "*-unfinished")


class NoWholeCheckpoint(ConfigError):
    """There are checkpoints, and every one is damaged; the message names each."""


class Found(NamedTuple):
    """A checkpoint to resume from. ``saved``: what it holds; its tensors stay on disk until they are used."""

    path: Path
    step: int
    saved: dict[str, Any]


def find_checkpoint(folder: Path, *, tidy: bool) -> Found | None:
    """The whole checkpoint in ``folder`` with the most steps, None where there is none.

    Args:
        tidy: this process (the first one of a run) also sets damaged files aside and removes what a kill left behind;
            others wait until that is done.

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
        except FileNotFoundError:  # set aside by the first process just now
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
    if tidy and chosen is not None:
        _tidy(folder, chosen, damaged)
    elif not tidy:
        _wait_for_order(folder)
    return chosen


def _tidy(folder: Path, chosen: Found, damaged: list[DamagedCheckpoint]) -> None:
    for error in damaged:
        aside = error.path.with_name(error.path.name + DAMAGED)
        error.path.replace(aside)
        logger.warning("%s; it is set aside as %s", error, aside.name)
    for path in folder.rglob(LAST):
        if path != chosen.path:  # a kill between the save of the new one and the removal of the old
            logger.info("removing %s: %s is newer and whole", path, chosen.path.name)
            path.unlink()


def _wait_for_order(folder: Path) -> None:
    until = time.monotonic() + 60
    while len(list(folder.rglob(LAST))) > 1 and time.monotonic() < until:
        time.sleep(0.1)
