"""docs/own_corpus.md: its shell blocks run as they stand, from a table to an answer about a clip."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_desta.sources import resolve_source
from nemo_desta.testing.data import write_tone

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/own_corpus.md").read_text(encoding="utf-8"), re.S)
#: `desta` for a checkout that is not installed.
WRAPPER = f"""#!{sys.executable}
import runpy, sys
from importlib.util import find_spec
scripts = {{"generate": "desta_generate_data", "train": "speechlm_desta", "chat": "desta_chat"}}
command, *rest = sys.argv[1:]
if find_spec("nemo_desta.cli"):
    runpy.run_module("nemo_desta", run_name="__main__", alter_sys=True)
elif command in scripts:
    sys.argv = [f"{ROOT}/examples/{{scripts[command]}}.py", *rest]
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    from nemo_desta.recipes.new_project import main
    sys.exit(main(rest))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with what the page asks for: recordings and a table, an LLM and a Whisper."""
    lines = ["file,species,mood,recordist"]
    (tmp_path / "birdsong/clips").mkdir(parents=True)
    for i in range(1, 25):
        write_tone(tmp_path / f"birdsong/clips/b{i:02d}.wav", 0.5 + i % 3 / 10, pitch_hz=200 + 20 * i)
        species, mood = ("blackbird", "robin")[i % 2], ("calm", "alarmed")[i % 3 > 0]
        lines.append(f"clips/b{i:02d}.wav,{species},{mood},{('anna', 'ben')[i % 2]}")
    (tmp_path / "birdsong/labels.csv").write_text("\n".join(lines) + "\n")
    shutil.copytree(resolve_source("package:demo/assets/llm"), tmp_path / "models/llm")
    shutil.copytree(resolve_source("package:demo/assets/encoders/whisper"), tmp_path / "models/whisper")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/desta").write_text(WRAPPER)
    (tmp_path / "bin/desta").chmod(0o755)
    return tmp_path


def test_the_page_has_blocks_and_at_most_two_screens() -> None:
    assert len(BLOCKS) == 6 and all(block.startswith("desta ") for block in BLOCKS)
    assert len((ROOT / "docs/own_corpus.md").read_text().splitlines()) <= 100


@pytest.mark.slow
def test_the_blocks_of_the_page_run_one_after_the_other(place: Path) -> None:
    paths = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env = {**os.environ, **paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    said = []
    for block in BLOCKS:
        done = subprocess.run(["bash", "-e", "-c", block], cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        said.append(done.stdout.strip())
    assert "next:" in said[0] and "rows to make: 24" in said[1] and "rows written: " in said[2]
    assert "parameters" in said[3] and (place / "mine/training/model/projector.safetensors").is_file()
    assert said[5], "the model answers"
    assert (place / "mine/rows/report.html").is_file() and list((place / "mine/rows/rows").glob("valid-*.jsonl"))
