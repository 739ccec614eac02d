"""The two pinned stacks: whole, free of addresses, and inside the bounds that package_info.py sets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemo_desta.package_info import EXTRAS, REQUIRES

ROOT = Path(__file__).resolve().parents[2]
STACKS = ("latest", "container")
#: The versions that define a stack; a change here is a change of what is supported.
DEFINING = {
    "latest": {"nemo-toolkit": "3.0.0", "torch": "2.13.0", "lightning": "2.4.0", "lhotse": "1.33.0"},
    "container": {"nemo-toolkit": "2.7.0", "torch": "2.13.0", "transformers": "4.57.6", "triton": "3.6.0"},
}


def pins(stack: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{stack}.txt").read_text().splitlines()
    found = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        name, version = re.fullmatch(r'([a-z0-9-]+)==([\w.]+)(?: ; python_version >= "3.11")?', line).groups()
        found[name] = version
    return found


@pytest.mark.parametrize("stack", STACKS)
def test_stack_is_what_it_says(stack):
    pinned = pins(stack)
    assert {name: pinned[name] for name in DEFINING[stack]} == DEFINING[stack]
    assert not [name for name in pinned if name.startswith("nvidia-")]


@pytest.mark.parametrize("stack", STACKS)
def test_every_requirement_is_pinned_within_its_bounds(stack):
    pinned = pins(stack)
    for line in REQUIRES + sum(EXTRAS.values(), []):
        requirement = Requirement(line)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}, but constraints/{stack}.txt has {version}"


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_chosen_by_hand_is_what_is_pinned(stack):
    pinned = pins(stack)
    for line in (ROOT / "constraints" / f"{stack}.in").read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line:
            requirement = Requirement(line)
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def image_script(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "constraints" / "image.py"), *args]
    return subprocess.run(command, text=True, capture_output=True)


def test_an_image_passes_untouched_and_fails_when_its_torch_was_swapped(tmp_path):
    record = tmp_path / "image.txt"
    assert image_script("record", str(record)).returncode == 0
    assert image_script("verify", str(record)).returncode == 0

    text = record.read_text()
    record.write_text(text.replace("commit ", "commit 0", 1))  # the same version, another build
    rebuilt = image_script("verify", str(record))
    assert rebuilt.returncode == 1 and "torch: " in rebuilt.stderr

    record.write_text(re.sub(r"^lhotse==.*$", "lhotse==0.0.1", text, flags=re.MULTILINE))
    moved = image_script("verify", str(record))
    assert moved.returncode == 1 and "lhotse: 0.0.1 -> " in moved.stderr


def test_an_image_that_has_all_of_an_extra_lacks_nothing():
    result = image_script("missing", "train")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


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
    assert "No Python 3.10, 3.11 or 3.12 found" in result.stderr and "make PYTHON=" in result.stderr
