"""Rules for every file of the repository: no machine's paths, small files, one version, commands that exist."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import pytest

import nemo_desta
from nemo_desta import package_info

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE = 4_200_000
MAX_FIXTURES = 12_000_000
#: Written so that this file does not match itself.
FOREIGN = re.compile(
    r"(?<![\w.])/(?:work|root|farm|Users|mnt)/\w|(?<![\w.])/home/(?!user\b)\w"
    r"|\.\./share[d]|file:/{2}/|pypi[.]org|pythonhosted[.]org|npmjs[.]org|hf_[A-Za-z]{30}"
)


def repository_files() -> list[Path]:
    """What git tracks or would track; of an unpacked archive, everything."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(p) for p in ROOT.rglob("*")]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


FILES = repository_files()


def test_no_file_names_a_machine_or_a_package_index():
    found = []
    for file in FILES:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # weights, audio, pictures
        found += [
            f"{file.relative_to(ROOT)}:{i}: {line[:120]}" for i, line in enumerate(lines, 1) if FOREIGN.search(line)
        ]
    assert not found, "\n".join(found)


def test_files_stay_small():
    large = {str(f.relative_to(ROOT)): f.stat().st_size for f in FILES if f.stat().st_size >= MAX_FILE}
    assert not large, f"each file stays under {MAX_FILE:,} bytes"


def test_fixtures_stay_small_together():
    fixtures = ROOT / "tests" / "fixtures"
    sizes = [f.stat().st_size for f in FILES if fixtures in f.parents]
    assert sum(sizes) < MAX_FIXTURES, f"{sum(sizes):,} bytes of fixtures"


def test_every_fixture_folder_says_where_it_comes_from():
    for folder in (ROOT / "tests" / "fixtures").iterdir():
        assert (folder / "README.md").exists(), f"{folder.name}: a README.md names source, versions and seed"


def test_one_version():
    assert nemo_desta.__version__ == package_info.__version__ == importlib.metadata.version("nemo_desta")
    assert package_info.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert package_info.__license__ == "Apache-2.0"


@pytest.mark.parametrize("page", [f for f in FILES if f.suffix == ".md"], ids=lambda f: str(f.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"link to {target}"


PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += [f"docs/{n}.md" for n in ("recipes", "report", "megatron", "chat", "serving", "export", "evaluation")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert named <= targets, f"no such make target: {named - targets}"
    for script in re.findall(r"python ((?:examples|benchmarks|constraints)/[\w/]+\.py)", text):
        assert (ROOT / script).exists(), f"no such script: {script}"
    for config in re.findall(r"--config-name[= ]([\w-]+)", text):
        places = [ROOT / "conf" / part / f"{config}.yaml" for part in (".", "recipes", "use")]
        assert any(place.exists() for place in places), f"no such config: {config}"


STACK_TESTS = ("test-container", "test-megatron", "test-legacy")


def test_make_help_names_every_target_and_ci_runs_them():
    shown = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, text=True, capture_output=True).stdout
    for target in ("demo", "test", "test-slow", *STACK_TESTS, "kernels", "lint", "docs", "docs-tables", "clean"):
        assert re.search(rf"^  make {target} +\S", shown, flags=re.MULTILINE), f"make help leaves out {target}"
    steps = re.findall(r"^step make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert steps == ["lint", "docs", "test", "test-slow", *STACK_TESTS, "kernels"]


def test_every_folder_with_modules_is_a_package():
    """setup.py's find_packages passes over folders without __init__.py: they would be missing after an install."""
    folders = {f.parent for f in FILES if f.suffix == ".py" and (ROOT / "nemo_desta") in f.parents}
    without = [str(p.relative_to(ROOT)) for p in folders if not (p / "__init__.py").exists()]
    assert not without
