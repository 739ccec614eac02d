"""The settings of the commands, each key changed: what is wrong is one line, before a model is loaded.

The training's configs are in tests/training/test_config_mutants.py.
"""

import logging
import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_desta.config import parse
from nemo_desta.evaluation.run import evaluate
from nemo_desta.evaluation.settings import EvaluateSettings
from nemo_desta.recipes.commands import run_command
from nemo_desta.serving.chat_command import run_chat
from nemo_desta.sharing.export_command import run_export
from tests.fuzz.settings import changes, tracebacks

CONF = Path(__file__).resolve().parents[2] / "conf"
#: Changes of one command; of more, so many are drawn.
MOST = 150
NO_MODEL = "model=/no/such/model"
#: Name of the config -> its folder, the job, and overrides.
JOBS = {
    "chat": ("use", run_chat, [NO_MODEL, "prompt=x"]),
    "export": ("use", run_export, [NO_MODEL, "output=exported"]),
    "evaluate": ("use", lambda given: evaluate(parse(EvaluateSettings, given, "evaluate")), [NO_MODEL, "output=out"]),
    "check": ("recipes", run_command, ["rows=none.jsonl"]),
    "report": ("recipes", run_command, ["rows=none.jsonl"]),
    "shar": ("recipes", run_command, ["rows=none.jsonl", "audio_root=.", "output=shar"]),
    "self_generate": (
        "recipes",
        run_command,
        ["corpus=none.jsonl", "data_root=.", "llm=nollm", "output=rows", "check=true"],
    ),
    "self_rephrase": ("recipes", run_command, ["rows=none.jsonl", "llm=nollm", "output=rows", "check=true"]),
}


@pytest.mark.parametrize("name", JOBS)
def test_no_changed_setting_of_a_command_ends_in_a_traceback(name, tmp_path, monkeypatch, capsys):
    folder, job, overrides = JOBS[name]
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.WARNING)
    with initialize_config_dir(str(CONF / folder), version_base=None):
        base = OmegaConf.to_container(compose(name, overrides))
    try:
        every = list(changes(base, but=("web", "check")))
        tried = random.Random(0).sample(every, min(len(every), MOST))
        bad = tracebacks(job, base, tried)
    finally:
        logging.disable(logging.NOTSET)
    assert len(tried) > 50
    assert bad == []
