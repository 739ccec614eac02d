"""Download pre-trained encoders and verify their checksums.

desta fetch whisper-large-v3 models/whisper-large-v3
desta fetch https://host/BEATs.pt models --sha256 <sum that you trust>
"""

import argparse
import hashlib
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from huggingface_hub import HfApi, hf_hub_url

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.progress import Progress
from nemo_desta.sources import file_digest

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
WHISPER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
BEATS = "BEATs_iter3_plus_AS2M.pt"


@dataclass(frozen=True)
class Asset:
    """Files of a Hugging Face Hub repository, compared with the checksums that the Hub lists."""

    repo: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Copied:
    """One file that its authors no longer host, in ``copies`` by others: (Hub repository, its type)."""

    file: str
    sha256: str
    copies: tuple[tuple[str, str], ...]


ASSETS: dict[str, Asset | Copied] = {
    **{
        f"whisper-{size}": Asset(f"openai/whisper-{size}", WHISPER_FILES)
        for size in ("tiny", "base", "small", "medium", "large-v2", "large-v3")
    },
    # 361,499,833 bytes, MIT licence. The sum is the one that many projects state; the authors' own links are dead.
    "beats": Copied(
        BEATS,
        "d43cbfad4d7b56381c061d7a24774f908d4d94c72961f6eb1d9090ff18cd8d34",
        (("Bencr/beats-checkpoints", "dataset"), ("lpepino/beats_ckpts", "model")),
    ),
}


def fetch(name_or_url: str, folder: str | Path, sha256: str | None = None) -> Path:
    """Download a named asset into ``folder`` or one file from a URL, resuming an interrupted download.

    A URL needs the ``sha256`` of its file. Files of the Hub are compared with the checksums that the Hub lists for one
    commit; a file that others copied, with the sum that is known. Returns the folder (Whisper) or the file.

    Raises:
        ConfigError: unknown name, or a URL without ``sha256``.
        ValueError: the file has another checksum; it is removed.
        ConnectionError: the connection broke; the received part stays for the next attempt.
    """
    folder = Path(folder).expanduser()
    if "://" in name_or_url:
        if sha256 is None:
            raise ConfigError(f"'{name_or_url}': give the sha256 that the file must have")
        name = unquote(Path(urlparse(name_or_url).path).name)
        return _fetch_file(name_or_url, folder / name, sha256.lower(), file_digest)
    if name_or_url not in ASSETS:
        raise ConfigError(f"unknown asset '{name_or_url}'.{nearest(name_or_url, ASSETS)}")
    asset = ASSETS[name_or_url]
    if isinstance(asset, Copied):
        return _fetch_copy(asset, folder)
    info = HfApi().model_info(asset.repo, files_metadata=True)
    stated = {file.rfilename: file for file in info.siblings}
    for name in asset.files:
        file, url = stated[name], hf_hub_url(asset.repo, name, revision=info.sha)
        if file.lfs is not None:
            _fetch_file(url, folder / name, file.lfs.sha256, file_digest)
        else:
            _fetch_file(url, folder / name, file.blob_id, _git_blob_id)
    return folder


def _fetch_copy(asset: Copied, folder: Path) -> Path:
    failed = []
    for repo, kind in asset.copies:
        try:
            url = hf_hub_url(repo, asset.file, repo_type=kind)
            return _fetch_file(url, folder / asset.file, asset.sha256, file_digest)
        except (ConnectionError, ValueError) as error:
            failed.append(str(error))
    raise ConnectionError(
        f"no copy of {asset.file} could be had ({'; '.join(failed)}). Search for that file name; wherever it is from, "
        f"desta fetch <url> <folder> --sha256 {asset.sha256} checks it"
    )


def _fetch_file(url: str, target: Path, expected: str, digest: Callable[[Path], str]) -> Path:
    if target.is_file():
        if digest(target) == expected:
            return target
        logger.warning("%s exists with other content and will be replaced", target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _download(url, part)
    found = digest(part)
    if found != expected:
        part.unlink()
        kind = "sha256" if digest is file_digest else "git blob id"
        raise ValueError(f"'{url}': expected {kind} {expected}, found {found}; file removed")
    os.replace(part, target)
    return target


def _download(url: str, part: Path) -> None:
    """Write ``url`` to ``part``; resume at its end if the server supports it."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # no bytes are left: the part is complete
            return
        raise ConnectionError(f"'{url}': the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ConnectionError(f"'{url}': {error.reason}") from error
    with response:
        resumed = response.status == 206
        start = start if resumed else 0
        total = start + int(response.headers.get("Content-Length", 0))
        with (
            part.open("ab" if resumed else "wb") as file,
            Progress(part.stem, total / 1e6 or None, unit="MB") as bar,
        ):
            bar.skip(start / 1e6)
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block) / 1e6)
    size = part.stat().st_size
    if size < total:
        raise ConnectionError(f"'{url}': {size} of {total} bytes arrived; run it again to resume")


def _git_blob_id(file: Path) -> str:
    return file_digest(file, hashlib.sha1(f"blob {file.stat().st_size}\0".encode()))


def main(words: list[str] | None = None) -> int:
    """The job ``desta fetch``."""
    parser = argparse.ArgumentParser(prog="desta fetch", description=__doc__.split("\n")[0])
    parser.add_argument("name_or_url", help=f"one of {', '.join(ASSETS)}, or a URL")
    parser.add_argument("folder", nargs="?", default=".", type=Path)
    parser.add_argument("--sha256", help="the sum that the file of a URL must have")
    arguments = parser.parse_args(words)
    try:
        print(fetch(arguments.name_or_url, arguments.folder, arguments.sha256))
    except (ConnectionError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
