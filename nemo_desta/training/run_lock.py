"""A lock per run folder: two runs in one folder would overwrite each other's checkpoints."""

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
    """Hold ``folder/.run.lock``; the system releases it when the process dies.

    It is a POSIX record lock: NFS supports it, and forked data workers do not inherit it, so it ends with the training
    process.

    Raises:
        FolderInUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".run.lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                logger.warning("%s has no file locks: a second run into this folder is not detected", folder)
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
