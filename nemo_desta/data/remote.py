"""Rows and shar archives by URL: each object is copied once to this machine, because training reads by position.

``http(s)`` is read by the standard library, ``s3``, ``gs``, ``az`` and ``ais`` through lhotse's ``open_best``, which
is imported only then. Copies lie in ``$NEMO_DESTA_CACHE`` (default ``~/.cache/nemo_desta``) below ``remote/`` and are
shared by all processes of the machine.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from nemo_desta.data.jsonl_log import try_lock
from nemo_desta.errors import ConfigError
from nemo_desta.sources import cache_root

#: Scheme -> (modules that must be there, what installs them). None: the standard library reads it.
SCHEMES: dict[str, tuple[tuple[str, ...], str]] = {
    "http": ((), ""),
    "https": ((), ""),
    "s3": (("lhotse", "smart_open", "boto3"), "pip install lhotse 'smart_open[s3]'"),
    "gs": (("lhotse", "smart_open", "google.cloud.storage"), "pip install lhotse 'smart_open[gcs]'"),
    "az": (("lhotse", "smart_open", "azure.storage.blob"), "pip install lhotse 'smart_open[azure]'"),
    "ais": (("lhotse", "aistore"), "pip install lhotse aistore"),
}
#: Seconds without an answer of the server after which reading ends.
TIMEOUT_SECS = 60.0
#: Pauses before a failed transfer is tried again.
RETRY_SECS = (1.0, 5.0)

logger = logging.getLogger(__name__)


def is_url(text: object) -> bool:
    """Whether a path in a config is a URL. Raises ``ConfigError`` for ``pipe:``, which would run a command."""
    if not isinstance(text, str):
        return False
    if text.startswith("pipe:"):
        raise ConfigError(f"'{text:.80}': pipe: would run a command; give a file or a URL ({', '.join(SCHEMES)})")
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def check_url(url: str) -> None:
    """Raise ``ConfigError`` for a URL that cannot be read here: its scheme, a pattern in it, or a missing package."""
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise ConfigError(f"{shown(url)}: scheme '{scheme}' is not read; known: {', '.join(SCHEMES)}")
    if re.search(r"[*\[\]]", shown(url)):
        raise ConfigError(f"{shown(url)}: objects behind a URL cannot be listed: give {{000..127}} instead of *")
    modules, install = SCHEMES[scheme]
    for module in modules:
        if not _is_installed(module):
            raise ConfigError(f"{shown(url)}: reading {scheme}:// needs {module}: {install}")
    if scheme == "ais" and not os.environ.get("AIS_ENDPOINT"):
        raise ConfigError(
            f"{shown(url)}: reading ais:// needs the environment variable AIS_ENDPOINT (http://host:port)"
        )


@cache
def local_copy(url: str) -> Path:
    """The file of a URL on this machine. An earlier copy is used where the server says that it has not changed, or,
    for object stores, where its size is the same. A failed transfer is tried again `RETRY_SECS` later.

    Raises:
        ConfigError: see `check_url`. FileNotFoundError: there is no such object. OSError: it cannot be read.
    """
    check_url(url)
    for wait in RETRY_SECS:
        try:
            return _copied(url)
        except FileNotFoundError:
            raise
        except OSError as error:
            logger.warning("%s; next try in %g s", error, wait)
            time.sleep(wait)
    return _copied(url)


def cache_folder() -> Path:
    """The folder of all copies."""
    return cache_root() / "remote"


def shown(url: str) -> str:
    """The URL for messages: without a password, and without a query, which may be a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _copied(url: str) -> Path:
    place = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    target, stamp = place / _file_name(url), place / "stamp.json"
    with (place / "lock").open("w") as lock:
        try_lock(lock, wait=True)  # the other processes of this machine wait for the one that copies
        known = json.loads(stamp.read_bytes()) if target.is_file() and stamp.is_file() else {}
        with _opened(url, known) as (stream, about, size):
            if stream is None:
                logger.info("%s has not changed: %s", shown(url), target)
                return target
            part = place / "part"
            with part.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
                length = file.tell()
            if size is not None and length != size:
                raise OSError(f"{shown(url)} ended after {length:,} of {size:,} bytes: run again")
            stamp.unlink(missing_ok=True)  # a kill between these lines copies again
            os.replace(part, target)
            stamp.write_text(json.dumps({**about, "bytes": length}))
        logger.info("%s: %s bytes copied to %s", shown(url), f"{length:,}", target)
    return target


@contextmanager
def _opened(url: str, known: dict[str, Any]) -> Iterator[tuple[BinaryIO | None, dict[str, Any], int | None]]:
    """(stream, what tells a later change, bytes if known); the stream is None where the ``known`` copy is current."""
    if not url.startswith(("http://", "https://")):
        with _object(url) as stream:
            size = _size(stream) if known else None
            yield (None if size is not None and size == known.get("bytes") else stream), {}, size
        return
    headers = {"If-None-Match": known.get("etag"), "If-Modified-Since": known.get("modified")}
    request = Request(url, headers={name: value for name, value in headers.items() if value})
    try:
        with urlopen(request, timeout=TIMEOUT_SECS) as answer:
            about = {"etag": answer.headers.get("ETag"), "modified": answer.headers.get("Last-Modified")}
            length = answer.headers.get("Content-Length")
            yield answer, about, int(length) if length else None
    except HTTPError as error:
        if error.code == 304 and known:
            yield None, {}, None
            return
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        raise kind(f"{shown(url)}: the server answers {error.code} {error.reason}") from None
    except URLError as error:
        raise OSError(f"{shown(url)}: {error.reason}") from None


@contextmanager
def _object(url: str) -> Iterator[BinaryIO]:
    from lhotse.serialization import open_best

    try:
        stream = open_best(url, "rb")
    except Exception as error:  # each store has its own errors; open_best hides them behind one
        cause = error.__context__ or error
        raise OSError(f"{shown(url)} cannot be opened: {type(cause).__name__}: {str(cause):.200}") from None
    with stream:
        yield stream


def _size(stream: BinaryIO) -> int | None:
    """Bytes of an object, where its stream can seek."""
    try:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
    except Exception:  # each store has its own errors
        return None
    return size if isinstance(size, int) else None


def _file_name(url: str) -> str:
    """The object's own name, as text of a file name."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return re.sub(r"[^\w.-]", "_", name)[-100:].lstrip(".") or "object"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
