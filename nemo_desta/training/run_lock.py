"""One run per folder: two that train into the same one would overwrite each other's checkpoints."""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_desta.errors import ConfigError

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderInUse(ConfigError):
    """Another process trains into the folder; the message names it."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder/.run.lock``; the system frees it when the process dies.

    A POSIX record lock: data workers, which are forked, do not inherit it, so that it dies with the process that
    trains, and NFS knows it.

    Raises:
        FolderInUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".run.lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                logger.warning("%s has no file locks: a second run into this folder would not be noticed", folder)
            elif error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                raise FolderInUse(
                    f"another process trains into {folder.parent}: {file.read().strip() or 'unknown'}. Wait for its "
                    "end, stop it, or give another folder (exp_manager.exp_dir or name)"
                ) from error
            else:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
