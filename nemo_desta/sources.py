"""Sources of weights and tokenizers: a folder, a hub id, or ``package:<path>`` for files that nemo_desta ships."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.errors import ConfigError

PACKAGE_SCHEME = "package:"
BLOCK_BYTES = 65_536
NUM_BLOCKS = 16


def resolve_source(path: str) -> str:
    """Turn ``package:<path>`` into a folder or file of the installed package; other sources are returned unchanged.

    Raises:
        FileNotFoundError: the package does not ship that path.
    """
    if not path.startswith(PACKAGE_SCHEME):
        return path
    inside = Path(str(resources.files("nemo_desta"))) / path.removeprefix(PACKAGE_SCHEME)
    if not inside.exists():
        raise FileNotFoundError(f"'{path}': nemo_desta ships no such file")
    return str(inside)


def cache_root() -> Path:
    """The folder of this package's caches: ``$NEMO_DESTA_CACHE``, or ``~/.cache/nemo_desta``."""
    return Path(os.environ.get("NEMO_DESTA_CACHE") or "~/.cache/nemo_desta").expanduser()


def conf_folder() -> Path:
    """The shipped configs: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def is_local(path: str) -> bool:
    """Whether a source is a path on this machine rather than a hub id ``owner/name``."""
    return path.startswith((PACKAGE_SCHEME, "/", "./", "../", "~")) or Path(resolve_source(path)).exists()


def local_folder(path: str) -> Path | None:
    """The folder that holds a source's files: itself, or the hub's cached snapshot; None if there is none."""
    if is_local(path):
        folder = Path(resolve_source(path)).expanduser()
        return folder if folder.exists() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # neither a path nor a hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


class ShippedWeights(NamedTuple):
    """Weights that a shipped config names. ``users``: ``group=config``; ``note``: size and licence."""

    users: list[str]
    note: str


def shipped_weights() -> dict[str, ShippedWeights]:
    """By source, of the LLMs and encoders; the notes are the comments beside the paths."""
    users: dict[str, list[str]] = {}
    notes: dict[str, str] = {}
    for group in ("llm", "encoders"):
        for file in sorted((conf_folder() / group).glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            for source, note in re.findall(r"^\s*path: ([^#\s]+)(?:[ \t]+# (.+))?", text, flags=re.MULTILINE):
                users.setdefault(source, []).append(f"{group}={file.stem}")
                notes[source] = notes.get(source) or note
    return {source: ShippedWeights(used, notes[source]) for source, used in users.items()}


def weights_note(source: str) -> str:
    """Size and licence of weights, in brackets after a space; "" if no shipped config says them."""
    found = shipped_weights().get(source)
    return f" ({found.note})" if found and found.note else ""


def why_missing(source: str) -> str | None:
    """Why the files of a source cannot be had here, and what to do; None if they are here or may be on the hub."""
    if local_folder(source) is not None:
        return None
    if reason := _why_no_hub_id(source):
        return reason
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        return None
    return (
        f"no folder '{source}' here, it is not in the local hub cache either, and HF_HUB_OFFLINE is set. If it is a "
        f"hub id, on a machine with network: hf download {source}{weights_note(source)} (where its page asks to "
        "accept a licence, accept it there, then: hf auth login)"
    )


def _why_no_hub_id(source: str) -> str | None:
    """Why a source that is not here is no hub id either, with the nearest folder; None if it may be one."""
    near = Path(source).parent
    if not is_local(source) and source.count("/") == 1 and not near.is_dir():
        return None
    here = [path.name for path in near.iterdir()] if near.is_dir() and near != Path(".") else []
    close = difflib.get_close_matches(Path(source).name, here, n=1)
    if close:
        return f"no folder '{source}'. Did you mean '{near / close[0]}'?"
    return f"no folder '{source}'" + ("" if is_local(source) or here else " (and no hub id, which is owner/name)")


def fetch_folder(source: str, patterns: list[str], **options: Any) -> Path:
    """The folder of a source; missing files of a hub id that match ``patterns`` are downloaded.

    ``options``: of `huggingface_hub.snapshot_download`, such as ``revision``.

    Raises:
        FileNotFoundError: there is no such folder, and the hub has no model of this name.
    """
    if is_local(source):
        if (folder := local_folder(source)) is None:
            raise FileNotFoundError(f"no folder '{source}'")
        return folder
    if reason := _why_no_hub_id(source):
        raise FileNotFoundError(reason)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **options))
    except HFValidationError:
        raise FileNotFoundError(f"no folder '{source}' (and no hub id, which is owner/name)") from None
    except OSError as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"no folder '{source}', and the hub has no model of this name ({type(error).__name__}: {reason})"
        ) from error


def inside(folder: Path, name: str) -> Path:
    """The path of ``name``, which an untrusted file gives, as an entry of ``folder``.

    Raises:
        ConfigError: a name that leads outside the folder, such as ``../x``, or a pattern.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\*?[\0"):
        raise ConfigError(f"'{folder}' names a file outside its folder: {name!r}; a plain file name is expected")
    return folder / name


def file_digest(file: Path, digest: Any = None) -> str:
    """Hexadecimal digest of a whole file: SHA-256, or the hash object ``digest`` continued."""
    digest = digest or hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sampled_blocks(file: Path) -> Iterator[bytes]:
    """Blocks spread evenly over a file, from which weights of any size can be told apart quickly."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        for i in range(NUM_BLOCKS):
            stream.seek(max(0, (size - BLOCK_BYTES) * i // (NUM_BLOCKS - 1)))
            yield stream.read(BLOCK_BYTES)
