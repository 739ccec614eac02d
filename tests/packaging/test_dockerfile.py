"""What can be known of the container image without building it."""

import re
from pathlib import Path

import pytest

from nemo_desta.package_info import EXTRAS

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(keyword, arguments) in order, continuation lines joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


RUNS = [arguments for keyword, arguments in instructions() if keyword == "RUN"]
COPIES = [arguments for keyword, arguments in instructions() if keyword == "COPY"]


def test_base_image_is_an_argument_with_a_pinned_tag():
    assert instructions()[0] == ("ARG", "BASE_IMAGE=nvcr.io/nvidia/nemo-speech:26.07.00")
    stages = set()
    for _, arguments in (i for i in instructions() if i[0] == "FROM"):
        base, _, name = re.fullmatch(r"(\S+)( AS (\S+))?", arguments).groups()
        assert base == "${BASE_IMAGE}" or base in stages, f"FROM {base} is neither the base nor a stage"
        stages.add(name)


@pytest.mark.parametrize("copy", COPIES)
def test_copy_sources_exist_and_reach_the_build(copy):
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copy.split()[:-1]:
        assert (ROOT / source).exists(), f"COPY {source}: no such file"
        assert any(source == p or source.startswith(p + "/") for p in let_in), f"{source} is kept out by .dockerignore"


def test_commands_that_break_images_are_not_used():
    for run in RUNS:
        assert "apt-get install" not in run or "rm -rf /var/lib/apt/lists" in run, (
            f"apt lists stay in the image: {run}"
        )
        assert not re.search(r"\b(sudo|curl [^|]*\| *(ba)?sh)\b", run)
        assert not re.search(r"(?<!-m )\bpip3? install", run), "plain `pip` is another environment's in this image"
    assert not any(keyword == "ADD" for keyword, _ in instructions())
    assert ("SHELL", '["/bin/bash", "-euo", "pipefail", "-c"]') in instructions()


def test_every_pip_line_keeps_the_image_and_is_verified():
    lines = [run for run in RUNS if "pip install" in run]
    assert lines
    for run in lines:
        for command in re.findall(r"pip install[^&]*", run):
            assert "--no-cache-dir" in command
            assert "--no-deps" in command or "-c constraints/image.txt" in command
            assert not re.search(r"\b(torch|triton|nemo_toolkit)\b", command)
        assert run.rindex("image.py verify") > run.rindex("pip install")


def test_dependencies_come_before_the_sources_and_the_smoke_check_last():
    order = [f"{keyword} {arguments}" for keyword, arguments in instructions()]
    dependencies = next(i for i, line in enumerate(order) if "-r constraints/missing.txt" in line)
    sources = order.index("COPY nemo_desta nemo_desta")
    assert dependencies < sources
    assert "nemo_desta doctor" in RUNS[-1] and "import nemo_desta.models" in RUNS[-1]


def test_the_extras_it_installs_exist():
    (wanted,) = re.findall(r"image.py missing ([a-z ]+) >", " ".join(RUNS))
    assert set(wanted.split()) <= EXTRAS.keys()
    assert {"train", "megatron"} <= set(wanted.split())


def test_training_runs_from_the_image_working_directory():
    folders = [arguments for keyword, arguments in instructions() if keyword == "WORKDIR"]
    assert folders == ["/opt/nemo_desta"]
    assert {"conf conf", "examples examples"} <= set(COPIES)
    assert (ROOT / "examples" / "speechlm_desta.py").exists() and (ROOT / "conf" / "desta25.yaml").exists()
