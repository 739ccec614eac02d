"""The command ``desta``: its jobs, its help, its mistakes, and what it imports for them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_desta.cli.commands import COMMANDS
from nemo_desta.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "nemo", "lightning", "megatron", "lhotse", "gradio", "uvicorn")

#: Words, exit status, and what must be in the output. None of them may import a heavy package.
LIGHT = [
    (["--help"], 0, "serve     serve a model over OpenAI's chat API"),
    (["trian"], 1, "desta has no job 'trian'. Did you mean 'train'?"),
    (["train", "--help"], 0, "projector=<name>: alarm, alarm_ca, alarm_p, conv, qformer"),
    (["chat", "--help"], 0, "model: ???              # folder or hub id"),
    (["generate", "--config-name", "report", "--help"], 0, "Settings (key=value), report.yaml"),
    (["generate", "--config-name", "chek"], 1, "no config 'chek'"),
    (["train", "--config-dir", "nowhere"], 1, "no folder of configs at 'nowhere'"),
    (["train", "+model.llm.pth=x"], 1, "unknown key 'model.llm.pth'. Did you mean 'path'?"),
    (["chat", "+mdel=x"], 1, "unknown key 'chat.mdel'. Did you mean 'model'?"),
    (["serve", "+prot=x"], 1, "unknown key 'serve.prot'. Did you mean 'port'?"),
    (["export", "+modl=x"], 1, "unknown key 'export.modl'. Did you mean 'model'?"),
    (["evaluate", "+modl=x"], 1, "unknown key 'evaluate.modl'. Did you mean 'model'?"),
    (["train", "modl=x"], 1, "'modl'"),
    (["train", "--multi-run"], 1, "unknown option --multi-run. Did you mean '--multirun'?"),
    (["chat", "prompt=x", "--cfg", "job"], 0, "prompt: x"),
    (["chat", "batch.vllm={max_model_len: 9}", "--cfg", "job"], 0, "max_model_len: 9"),
    (["evaluate", "predictions={mmau: a.json}", "--cfg", "job"], 0, "mmau: a.json"),
    (["evaluate", "predictoins={mmau: a.json}"], 1, "'evaluate.predictoins'. Did you mean 'predictions'?"),
    (["doctor", "--weights"], 0, "hf download openai/whisper-large-v3"),
    (["doctor", "--weights"], 0, "hf download OpenMuQ/MuQ-large-msd-iter (333 M parameters, 1.3 GB; CC-BY-NC-4.0"),
]

#: All of them in one process, whose imports are then counted.
RUN = """
import contextlib, io, json, sys
from nemo_desta.cli.main import main
said = []
for words in json.loads(sys.argv[1]):
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code
    said.append([status, screen.getvalue()])
heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps([said, heavy]))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    words = [case[0] for case in LIGHT]
    command = [sys.executable, "-c", RUN, json.dumps(words), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(LIGHT)), ids=lambda number: " ".join(LIGHT[number][0]))
def test_help_and_mistakes_are_answered(said, number):
    words, status, wanted = LIGHT[number]
    found, screen = said[0][number]
    assert found == status and wanted in screen
    if status:
        assert "Traceback" not in screen and len(screen.strip().splitlines()) == 1


def test_help_and_mistakes_import_no_heavy_package(said):
    assert said[1] == []


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not command.config])
def test_every_job_without_a_config_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and f"desta {name}" in capsys.readouterr().out


def test_every_example_is_a_job():
    scripts = sorted((ROOT / "examples").glob("*.py"))
    jobs = {script.stem: script.read_text().partition('script("')[2].partition('"')[0] for script in scripts}
    assert len(jobs) == 8 and set(jobs.values()) <= COMMANDS.keys()


def test_a_folder_of_own_configs_is_added(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.yaml").write_text("defaults: [desta25, _self_]\nname: own\nseed: 7\n")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config-dir", "mine", "--config-name", "own", "seed=8", "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "name: own" in shown and "seed: 8" in shown and "Llama-3.1-8B" in shown


def test_several_runs_write_into_folders_of_their_own(tmp_path, monkeypatch):
    folders = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nemo_desta.training.fit.fit", lambda cfg: folders.append(cfg.exp_manager.exp_dir))
    assert main(["train", "name=x", "-m", "seed=1,2"]) == 0
    assert [Path(folder).parts[0] for folder in folders] == ["multirun"] * 2 and len(set(folders)) == 2
    assert Path.cwd() == tmp_path
