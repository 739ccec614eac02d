"""What the Dockerfile adds to NVIDIA's images, or refuses: fake site-packages with the versions that NVIDIA publishes.

Versions of nemo-speech:26.07.00 are those of the lock file that it is built from, those of the others come from the
release notes of Megatron-Bridge. The packages that NeMo asks for are taken as present where an image has NeMo, and as
absent where it has none, but for those that Megatron-Bridge asks for itself.
"""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ["train", "megatron", "recipes", "eval"]
HUGGING_FACE = {"huggingface-hub": "1.9.2", "safetensors": "0.7.0", "tokenizers": "0.22.2", "datasets": "4.8.4"}
COMMON = {"numpy": "2.2.6", "tqdm": "4.67.3", "omegaconf": "2.3.0", "tensorboard": "2.20.0", "pyyaml": "6.0.2"}
BRIDGE = COMMON | HUGGING_FACE | {"jinja2": "3.1.6", "pyarrow": "21.0.0", "scipy": "1.15.3"}

#: Tag -> what it brings. "NeMo" stands for everything that the installed NeMo asks for.
IMAGES: dict[str, dict[str, str]] = {
    "nvcr.io/nvidia/nemo-speech:26.07.00": COMMON
    | HUGGING_FACE
    | {"torch": "2.12.0+cu132", "nemo-toolkit": "3.0.0", "transformers": "5.5.0", "lightning": "2.4.0"}
    | {"lhotse": "1.33.0", "peft": "0.18.0", "transformer-engine": "2.15.0", "orjson": "3.11.9", "NeMo": ""},
    "nvcr.io/nvidia/nemo:26.02": BRIDGE
    | {
        "torch": "2.10.0a0+b4e4ee81d3.nv25.12",
        "nemo-toolkit": "2.7.0rc0",
        "transformers": "4.57.6",
        "lightning": "2.4.0",
    }
    | {"lhotse": "1.32.1", "peft": "0.17.1", "megatron-core": "0.16.0", "transformer-engine": "2.12.0", "NeMo": ""},
    "nvcr.io/nvidia/nemo:26.04": BRIDGE
    | {"torch": "2.11.0a0+eb65b36914.nv26.02", "nemo-toolkit": "2.7.3", "transformers": "5.3.0", "lightning": "2.4.0"}
    | {"lhotse": "1.32.1", "peft": "0.18.1", "megatron-core": "0.17.0", "transformer-engine": "2.14.0", "NeMo": ""},
    "nvcr.io/nvidia/nemo:26.06": BRIDGE
    | {"torch": "2.12.0a0+nv26.04", "transformers": "5.8.1", "peft": "0.18.1", "hydra-core": "1.3.2"}
    | {"megatron-core": "0.18.0", "transformer-engine": "2.16.0"},
    "nvcr.io/nvidia/nemo:26.08": BRIDGE
    | {"torch": "2.12.0a0+nv26.06", "transformers": "5.12.1", "peft": "0.19.0", "hydra-core": "1.3.4"}
    | {"megatron-core": "0.19.1", "transformer-engine": "2.17.0"},
    "nvcr.io/nvidia/nemo:25.11": BRIDGE
    | {"torch": "2.9.0a0", "nemo-toolkit": "2.6.0", "transformers": "4.57.1", "lightning": "2.4.0"}
    | {"megatron-core": "0.15.0", "transformer-engine": "2.9.0", "NeMo": ""},
}
#: Tag -> what is added first without its requirements, and some of what is added after it; or the words of a refusal.
EXPECTED = {
    "nvcr.io/nvidia/nemo-speech:26.07.00": ([], {"megatron-core", "py3langid", "zstandard", "aiohttp"}),
    "nvcr.io/nvidia/nemo:26.02": ([], {"py3langid", "orjson", "zstandard"}),
    "nvcr.io/nvidia/nemo:26.04": ([], {"py3langid", "orjson", "zstandard"}),
    "nvcr.io/nvidia/nemo:26.06": (["nemo_toolkit"], {"lhotse", "lightning", "soundfile"}),
    "nvcr.io/nvidia/nemo:26.08": (["nemo_toolkit"], {"lhotse", "lightning", "soundfile"}),
    "nvcr.io/nvidia/nemo:25.11": "nemo_toolkit: 2.6.0 found, >=2.7.0,<3.1 needed; use an image that fits",
}
NEVER = {"torch", "transformers", "transformer-engine", "peft", "hydra-core", "numpy", "triton"}


class Site:
    """A folder of ``*.dist-info`` that importlib.metadata reads in place of the environment."""

    def __init__(self, folder: Path, versions: dict[str, str], monkeypatch):
        self.folder = folder
        self.nemo_asks = importlib.metadata.requires("nemo_toolkit")
        for name, version in versions.items():
            if name == "NeMo":
                asked = {canonicalize_name(Requirement(line).name) for line in self.nemo_asks}
                for package in asked - versions.keys() - {"megatron-core"}:
                    self.add(package, "99.0")
            else:
                self.add(name, version)
        monkeypatch.setattr(importlib.metadata, "version", lambda name: self.find(name).version)
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: self.find(name).requires)

    def add(self, name: str, version: str) -> None:
        place = self.folder / f"{canonicalize_name(name).replace('-', '_')}-{version}.dist-info"
        place.mkdir()
        asks = self.nemo_asks if canonicalize_name(name) == "nemo-toolkit" else []
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in asks)]
        (place / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")

    def find(self, name: str) -> importlib.metadata.Distribution:
        found = importlib.metadata.MetadataPathFinder.find_distributions(
            importlib.metadata.DistributionFinder.Context(name=name, path=[str(self.folder)])
        )
        if (distribution := next(iter(found), None)) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return distribution


@pytest.mark.parametrize("tag", IMAGES)
def test_an_image_gets_what_it_lacks_and_keeps_what_it_brings(tag, image, tmp_path, monkeypatch):
    site = Site(tmp_path, IMAGES[tag], monkeypatch)
    if isinstance(EXPECTED[tag], str):
        with pytest.raises(SystemExit, match=re.escape(EXPECTED[tag])):
            list(image.missing(EXTRAS))
        return
    alone, added = EXPECTED[tag]
    first = [Requirement(line).name for line in image.missing(EXTRAS)]
    assert [name for name in first if name in image.ALONE] == alone
    for name in alone:  # what `pip install --no-deps` does
        site.add(name, "3.0.0")
    names = {canonicalize_name(Requirement(line).name) for line in image.missing(EXTRAS)}
    assert added <= names and not names & NEVER
    assert not names & {canonicalize_name(name) for name in IMAGES[tag]}, "an image's own package would go to pip"
    for name in names:
        site.add(name, "99.0")
    assert list(image.missing(["recipes", "eval"])) == [], "one pass is enough"


def test_the_page_of_stacks_names_every_image_and_what_happens_to_it():
    page = (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")
    for tag, versions in IMAGES.items():
        (row,) = re.findall(rf"^\| `{re.escape(tag)}` \|.*$", page, flags=re.MULTILINE)
        nemo, megatron = versions.get("nemo-toolkit", "none"), versions.get("megatron-core", "none")
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert cells[:2] == [nemo, megatron] and cells[2] == versions["torch"].partition("a0")[0].partition("+")[0]
        assert ("refused" in cells[-1]) == isinstance(EXPECTED[tag], str)
