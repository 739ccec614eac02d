"""Writes an output folder atomically: next to its final path, renamed when it is complete."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(
    output: Path, source: Path, *, kind: str, is_earlier: Callable[[Path], bool], overwrite: bool
) -> None:
    """Refuse a path that holds something.

    Args:
        source: what the folder is made of; it must not be replaced.
        kind: name of what ``is_earlier`` recognises; only that is replaced, and only with ``overwrite``.

    Raises:
        FileExistsError: something at ``output`` must not be replaced.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if output.resolve() in (source.resolve(), *source.resolve().parents):
        raise FileExistsError(f"'{output}' holds what is to be {kind}ed; give another output")
    if not is_earlier(output):
        raise FileExistsError(f"'{output}' exists and is no earlier {kind}, so it is left alone; give another output")
    if not overwrite:
        raise FileExistsError(f"'{output}' exists already; overwrite=true replaces it")


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A temporary path next to ``output``; at the end it is renamed to ``output``. After an error it is removed.

    An earlier folder is removed once the new one is in place.
    """
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        yield part
        earlier = part.with_suffix(".old")
        if output.exists():
            output.rename(earlier)
        part.rename(output)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
