"""Where a folder for others is written: beside its place, which it takes when it is complete."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_place(output: Path, source: Path, *, kind: str, is_earlier: Callable[[Path], bool], overwrite: bool) -> None:
    """Refuse a place that holds something.

    Args:
        source: what the folder is made of, which must not be replaced by it.
        kind: what ``is_earlier`` recognises, in words: that alone is replaced, with ``overwrite``.

    Raises:
        FileExistsError: something is at ``output`` that must not or shall not be replaced.
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
def whole_folder(output: Path) -> Iterator[Path]:
    """A path for a new folder beside ``output``, whose name it gets at the end. After an error nothing is left of it.

    An earlier folder goes when the new one stands.
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
