"""The pinned stacks: whole, free of addresses, and inside the bounds that package_info.py sets."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from nemo_desta.package_info import CLASSIFIERS, EXTRAS, REQUIRES, __python_requires__

ROOT = Path(__file__).resolve().parents[2]
STACKS = ("latest", "container", "legacy")
#: The major versions that tell the stacks apart: between them, both ends of what package_info.py allows.
MAJOR = {
    "latest": {"nemo-toolkit": 3, "transformers": 5},
    "container": {"nemo-toolkit": 3, "transformers": 5},
    "legacy": {"nemo-toolkit": 2, "transformers": 4},
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements(file: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints" / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins(stack: str, python: str = "3.11") -> dict[str, str]:
    """Name -> version of what is pinned for one version of Python."""
    found = {}
    for requirement in requirements(f"{stack}.txt"):
        (bound,) = requirement.specifier
        assert bound.operator == "==" and requirement.name == canonicalize_name(requirement.name)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert requirement.name not in found, f"{requirement.name} is pinned twice for Python {python}"
            found[requirement.name] = bound.version
    return found


@pytest.mark.parametrize("stack", STACKS)
def test_stack_is_what_it_says(stack):
    pinned = pins(stack)
    assert {name: Version(pinned[name]).major for name in MAJOR[stack]} == MAJOR[stack]
    assert {"torch", "lightning", "lhotse", "triton"} <= pinned.keys()
    assert not [name for name in pinned if name.startswith("nvidia-")]


@pytest.mark.parametrize("stack", STACKS)
def test_every_requirement_is_pinned_within_its_bounds(stack):
    pinned = pins(stack)
    for line in REQUIRES + sum((EXTRAS[extra] for extra in EXTRAS.keys() - {"vllm"}), []):  # vllm: apart
        requirement = Requirement(line)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}, but constraints/{stack}.txt has {version}"


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_chosen_by_hand_is_what_is_pinned(stack):
    for python in PYTHONS:
        for requirement in requirements(f"{stack}.in"):
            if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
                version = pins(stack, python).get(canonicalize_name(requirement.name))
                # what needs Python 3.11 is not pinned for 3.10
                assert python == "3.10" and version is None or requirement.specifier.contains(version), requirement


def test_the_package_the_installer_and_the_pages_name_the_same_versions_of_python():
    supported = [f"3.{minor}" for minor in range(20) if SpecifierSet(__python_requires__).contains(f"3.{minor}.0")]
    assert supported == list(PYTHONS)
    assert [line.rpartition(" ")[2] for line in CLASSIFIERS if line.startswith("Programming")] == supported
    installer = (ROOT / "constraints" / "install.sh").read_text(encoding="utf-8")
    assert set(re.findall(r"python(3\.\d+) ", installer)) == set(supported)
    assert f"Python {supported[0]}-{supported[-1]}," in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_stacks_hold_the_oldest_and_the_newest_megatron_core():
    (line,) = EXTRAS["megatron"]
    bounds = Requirement(line).specifier
    versions = {pins(stack, python)["megatron-core"] for stack in STACKS for python in PYTHONS}
    assert versions == {"0.16.1", "0.19.2"} and all(bounds.contains(version) for version in versions)
    assert not bounds.contains("0.15.3") and not bounds.contains("0.20.0")


def test_vllm_is_pinned_without_nemo_and_within_the_bounds_of_its_extras():
    pinned = pins("vllm")
    assert not {"nemo-toolkit", "megatron-core", "lightning"} & pinned.keys()
    for line in REQUIRES + sum((EXTRAS[extra] for extra in ("vllm", "recipes", "serve", "eval")), []):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_an_image_passes_untouched_and_fails_when_its_torch_was_swapped(image, tmp_path, monkeypatch):
    record = tmp_path / "image.txt"
    run(image, monkeypatch, "record", record)
    run(image, monkeypatch, "verify", record)

    text = record.read_text()
    record.write_text(text.replace("commit ", "commit 0", 1))  # the same version, another build
    with pytest.raises(SystemExit, match="torch: .*commit 0.* -> "):
        run(image, monkeypatch, "verify", record)

    record.write_text(re.sub(r"^lhotse==.*$", "lhotse==0.0.1", text, flags=re.MULTILINE))
    with pytest.raises(SystemExit, match="lhotse: 0.0.1 -> "):
        run(image, monkeypatch, "verify", record)


def test_an_image_lacks_what_is_not_installed_and_nothing_else(image, monkeypatch):
    assert list(image.missing(["train"])) == []
    absent = ("kaldialign", "lhotse")  # one that only NeMo's asr-only extra names, one of our own list
    monkeypatch.setattr(importlib.metadata, "version", hide(absent))
    missing = list(image.missing(["train"]))
    assert {Requirement(line).name for line in missing} == set(absent)


def test_an_image_whose_nemo_is_too_old_is_refused_not_upgraded(image, monkeypatch):
    monkeypatch.setitem(image.EXTRAS, "train", ["nemo_toolkit>=99"])
    with pytest.raises(SystemExit, match="nemo_toolkit: .* found, >=99 needed; use an image that fits"):
        list(image.missing(["train"]))


def run(image, monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["image.py", *map(str, args)])
    image.main()


def hide(names):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    return version


def test_install_script_says_which_python_it_needs(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname"):
        found = subprocess.run(["which", tool], text=True, capture_output=True, check=True).stdout.strip()
        (tmp_path / "bin" / tool).symlink_to(found)
    result = subprocess.run(
        [tmp_path / "bin" / "bash", ROOT / "constraints" / "install.sh", tmp_path / "venv", "latest"],
        env={"PATH": str(tmp_path / "bin")},
        text=True,
        capture_output=True,
    )
    assert result.returncode != 0 and not (tmp_path / "venv").exists()
    assert "No Python 3.10, 3.11, 3.12 or 3.13 found" in result.stderr and "make PYTHON=" in result.stderr
