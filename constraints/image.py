"""Adds to a container image what is missing in it, and nothing else; used by the Dockerfile.

    python constraints/image.py record FILE      every version in the image, as a pip constraint file
    python constraints/image.py alone EXTRA...   what must be installed without its own requirements, one per line
    python constraints/image.py missing EXTRA... requirements of those extras that the image lacks, one per line
    python constraints/image.py verify FILE      fails when a recorded version, or torch's build, has changed

A requirement that the image meets is never handed to pip: images carry release candidates (``2.7.0rc0``) that a bound
such as ``>=2.7.0`` rejects, and pip would then replace the image's own NeMo. Megatron images have no NeMo, and their
hydra-core and peft are newer than NeMo's bounds allow. There NeMo is installed alone, then what it asks for and the
image lacks.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nemo_desta.doctor import check, installed
from nemo_desta.package_info import EXTRAS, REQUIRES

BUILD_MARK = "# torch build: "
#: Installed without their own requirements, whose upper bounds Megatron images exceed.
ALONE = {"nemo_toolkit"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "verify"):
        commands.add_parser(name).add_argument("file", type=Path)
    for name in ("alone", "missing"):
        commands.add_parser(name).add_argument("extras", nargs="+", choices=sorted(EXTRAS))
    args = parser.parse_args()

    if args.command == "record":
        args.file.write_text("\n".join([BUILD_MARK + torch_build(), *recorded_versions()]) + "\n", encoding="utf-8")
    elif args.command in ("alone", "missing"):
        lines = list(missing(args.extras))
        print("\n".join(line for line in lines if args.command == "missing" or Requirement(line).name in ALONE))
    else:
        changes = verify(args.file)
        if changes:
            sys.exit("the image's own packages have changed:\n" + "\n".join(changes))


def missing(extras: list[str]) -> Iterator[str]:
    """Yields requirement lines for pip.

    Raises:
        SystemExit: the image holds a version that does not fit; replacing it is not ours to decide.
    """
    for line in REQUIRES + [line for extra in extras for line in EXTRAS[extra]]:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        finding = check(line)
        if finding.version is None:
            yield line
        elif finding.problem:
            sys.exit(f"{finding.name}: {finding.problem}; use an image that fits (BASE_IMAGE)")
        else:
            yield from missing_below(requirement)


def missing_below(requirement: Requirement) -> Iterator[str]:
    """What an installed package and its extras, such as NeMo's ``asr-only``, ask for and the image lacks."""
    if not requirement.extras and requirement.name not in ALONE:
        return
    for line in importlib.metadata.requires(requirement.name) or []:
        inner = Requirement(line)
        marker = inner.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *requirement.extras])
        if wanted and installed(inner.name) is None:
            yield f"{inner.name}{inner.specifier}"


def recorded_versions() -> list[str]:
    """``name==version`` of every package that Python finds, the first on its path where there are two."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        try:
            Version(distribution.version)
        except InvalidVersion:
            continue  # a version that pip cannot compare cannot be a constraint
        versions.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution.version)
    return sorted(f"{name}=={version}" for name, version in versions.items() if name != "nemo-desta")


def verify(file: Path) -> list[str]:
    """What differs from the record; packages that were added since are no difference."""
    build, *lines = file.read_text(encoding="utf-8").splitlines()
    now = torch_build()
    changes = [] if build == BUILD_MARK + now else [f"torch: {build.removeprefix(BUILD_MARK)} -> {now}"]
    present = dict(line.split("==") for line in recorded_versions())
    for name, version in (line.split("==") for line in lines):
        if present.get(name) != version:
            changes.append(f"{name}: {version} -> {present.get(name, 'removed')}")
    return changes


def torch_build() -> str:
    """Tells builds of one version apart: the image's torch has its own commit and CUDA."""
    import torch

    return f"{torch.__version__} cuda {torch.version.cuda} commit {torch.version.git_version}"


if __name__ == "__main__":
    main()
