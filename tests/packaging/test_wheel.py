"""The wheel, installed away from the checkout: its commands, its configs, and a real training and answer by them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from nemo_desta.cli.commands import COMMANDS
from nemo_desta.package_info import __version__
from nemo_desta.testing.data import tiny_rows

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (
    *("conf/desta25.yaml", "conf/use/chat.yaml", "conf/recipes/engine/hf.yaml", "py.typed", "serving/page.css"),
    "verified/cards/kernel.yaml",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    source = folder / "source"  # a build leaves files in its folder
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def desta(wheel, tmp_path_factory):
    """Runs the command of an environment that has the wheel, and this one's packages without its nemo_desta."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    options = ["--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, capture_output=True)
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")  # .pth files in it are not read
    away = tmp_path_factory.mktemp("away")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    start = [str(python), "-c", "import sys; from nemo_desta.cli.main import main; sys.exit(main())"]

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([*start, *words], cwd=away, env=env, text=True, capture_output=True, timeout=300)

    found = subprocess.run(
        [str(python), "-c", "import nemo_desta; print(nemo_desta.__file__)"],
        cwd=away, env=env, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(site)
    run.folder = away
    return run


@pytest.mark.slow
def test_the_wheel_holds_the_configs_and_the_command(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    missing = [name for name in SHIPPED if f"nemo_desta/{name}" not in names and not name.endswith(".css")]
    assert missing == []
    yamls = {str(file.relative_to(ROOT)) for file in (ROOT / "conf").rglob("*.yaml")}
    assert {name.removeprefix("nemo_desta/") for name in names if name.startswith("nemo_desta/conf/")} == yamls
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "desta = nemo_desta.cli.main:main" in zipfile.ZipFile(wheel).read(entry).decode()
    assert any(name.endswith("demo/assets/encoders/beats.pt") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("job", COMMANDS)
def test_every_job_of_the_wheel_explains_itself(desta, job):
    done = desta(job, "--help")
    assert done.returncode == 0 and f"desta {job}" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_wheel_trains_and_answers(desta):
    rows = tiny_rows(desta.folder / "rows", 8)
    words = [
        "--config-name",
        "demo",
        f"data.audio_roots.default={desta.folder}/rows",
        "data.validation_ds.datasets=null",
    ]
    words += [f"data.train_ds.input_cfg=[{{type: desta, rows: {rows}}}]", "trainer.max_steps=2", "work_dir=run"]
    done = desta("train", *words)
    assert done.returncode == 0, done.stderr
    clip = f"{desta.folder}/rows/wavs/000.wav"
    done = desta(
        "chat", "model=run/training/model", f"audio={clip}", "prompt=What is it?", "sampling.max_new_tokens=4"
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def interpreter(version: str) -> str | None:
    """A Python of this version on the path, or one of pyenv's, whose commands on the path may be inactive."""
    found = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for candidate in filter(None, found):
        asked = subprocess.run([candidate, "--version"], text=True, capture_output=True)
        if asked.returncode == 0 and asked.stdout.startswith(f"Python {version}."):
            return str(candidate)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_another_python_installs_the_wheel_and_runs_what_needs_no_package(wheel, version, tmp_path):
    """Its own pip reads the bounds, it compiles every file, and `desta` answers without torch."""
    if (python := interpreter(version)) is None:
        pytest.skip(f"no Python {version} here")
    site = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-compile", "--target", str(site)]
    subprocess.run([python, "-m", "pip", "install", *options, str(wheel)], check=True, capture_output=True)
    subprocess.run([python, "-W", "error", "-m", "compileall", "-q", str(site)], check=True)

    def run(*words: str) -> subprocess.CompletedProcess:
        start = "import sys; from nemo_desta.cli.main import main; sys.exit(main())"
        env = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"]}
        return subprocess.run([python, "-c", start, *words], cwd=tmp_path, env=env, text=True, capture_output=True)

    shown = run("--help")
    assert shown.returncode == 0 and all(job in shown.stdout for job in COMMANDS), shown.stderr
    assert re.search(rf"nemo_desta +{re.escape(__version__)}\npython +{re.escape(version)}", run("--version").stdout)
    doctor = run("doctor")
    assert doctor.returncode == 1 and not doctor.stderr
    assert re.search(rf"ok  python +{re.escape(version)}\.", doctor.stdout)
    assert "torch: not installed" in doctor.stdout
