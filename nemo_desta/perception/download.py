"""Download pre-trained encoders and verify their checksums; explain how to get those without a reliable host.

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
from tqdm import tqdm

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.sources import file_digest

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
WHISPER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
BEATS_HELP = """\
BEATs checkpoints are not hosted reliably: the links in microsoft/unilm's beats/README.md (MIT licence) often answer
with errors. Nothing is downloaded; get the file yourself:
  1. try those links first, then search for the exact file name; there are copies, also on the Hugging Face Hub:
       BEATs_iter3_plus_AS2M.pt                           pre-trained
       BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt    fine-tuned on AudioSet, the one that SALMONN uses
  2. if its source gives a SHA-256, download and check the file with this command:
       desta fetch <url> <folder> --sha256 <sum>
  3. the file holds a dictionary: 'cfg' (12 layers, width 768), 'model' (90,311,792 parameters without the predictor)
     and, fine-tuned, 'label_dict' (527 AudioSet classes). It is read without running any code in it, and
     BeatsEncoder.from_checkpoint names what is missing; .classify gives the classes of a fine-tuned one."""


@dataclass(frozen=True)
class Asset:
    """Files of a Hugging Face Hub repository, or instructions where there is none."""

    repo: str | None = None
    files: tuple[str, ...] = ()
    instructions: str = ""


ASSETS = {
    **{
        f"whisper-{size}": Asset(f"openai/whisper-{size}", WHISPER_FILES)
        for size in ("tiny", "base", "small", "medium", "large-v2", "large-v3")
    },
    "beats": Asset(instructions=BEATS_HELP),
}


class NotHostedError(LookupError):
    """An asset without a reliable host; the message says how to get it."""


def fetch(name_or_url: str, folder: str | Path, sha256: str | None = None) -> Path:
    """Download a named asset into ``folder`` or one file from a URL, resuming an interrupted download.

    A URL needs the ``sha256`` of its file. Files of the Hub are compared with the checksums that the Hub lists for one
    commit. Returns the folder (asset) or the file (URL).

    Raises:
        ConfigError: unknown name, or a URL without ``sha256``.
        NotHostedError: an asset that has to be found by hand.
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
    if asset.repo is None:
        raise NotHostedError(asset.instructions)
    info = HfApi().model_info(asset.repo, files_metadata=True)
    stated = {file.rfilename: file for file in info.siblings}
    for name in asset.files:
        file, url = stated[name], hf_hub_url(asset.repo, name, revision=info.sha)
        if file.lfs is not None:
            _fetch_file(url, folder / name, file.lfs.sha256, file_digest)
        else:
            _fetch_file(url, folder / name, file.blob_id, _git_blob_id)
    return folder


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
            tqdm(total=total or None, initial=start, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
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
    except (NotHostedError, ConnectionError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
