"""Users' mistakes become one line with what to repair; bugs keep their traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_desta import user_errors
from nemo_desta.config import ModelConfig, parse
from nemo_desta.errors import ConfigError
from nemo_desta.user_errors import guard, one_line, text_of

ROOT = Path(__file__).resolve().parents[1]


def composing(*overrides: str, config: str = "desta25"):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return OmegaConf.to_container(compose(config, list(overrides)), resolve=True)


@pytest.mark.parametrize(
    ("overrides", "config", "parts"),
    [
        (["trainer.max_step=5"], "desta25", ["unknown key 'trainer.max_step'", "Did you mean 'max_steps'?"]),
        (["llm=llama31_8"], "desta25", ["'llm/llama31_8'", "Did you mean 'llama31_8b'?"]),
        ([], "dema", ["no config 'dema'", "Did you mean 'demo'?"]),
        ([], "real_audio", ["'data_root' must be given (it is ???)"]),
        (["trainer.max_steps=[1"], "desta25", ["'trainer.max_steps=[1'"]),
        (["data.train_ds.input_cfg.7.rows=3"], "desta25", ["data.train_ds.input_cfg[7]", "out of range"]),
        (["seed=${nope}"], "desta25", ["seed", "'nope' not found"]),
    ],
)
def test_an_error_of_the_config_names_key_and_nearest_name_in_one_line(overrides, config, parts):
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        composing(*overrides, config=config)
    line = one_line(caught.value)
    assert "\n" not in line and all(part in line for part in parts), line


def test_our_own_errors_keep_their_words_and_become_one_line():
    with pytest.raises(ConfigError) as caught:
        parse(ModelConfig, {"freze": []})
    assert text_of(caught.value).startswith("ConfigError: unknown key 'model.freze'. Did you mean 'freeze'?")
    assert one_line(ConfigError("one\n   two")) == "one two"


def test_paths_are_named(tmp_path):
    with pytest.raises(OSError) as caught:
        (tmp_path / "none").read_text()
    assert one_line(caught.value) == f"no file or folder '{tmp_path}/none'"
    with pytest.raises(OSError) as caught:
        tmp_path.read_text()
    assert one_line(caught.value) == f"'{tmp_path}': is a directory"


def test_yaml_and_json_of_users_are_one_line(tmp_path):
    (tmp_path / "card.yaml").write_text("a: [1\nb: 2\n")
    with pytest.raises(Exception) as caught:
        OmegaConf.load(tmp_path / "card.yaml")
    line = one_line(caught.value)
    assert "not valid YAML" in line and "line 2" in line and "\n" not in line
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    assert "Expecting property name" in one_line(caught.value)


def test_a_bug_is_none_of_users_errors():
    for error in (TypeError("x"), ZeroDivisionError(), AttributeError("y"), RuntimeError("z"), AssertionError()):
        assert one_line(error) is None
    with pytest.raises(ValueError) as caught:
        int("many")  # raised in this test's frame, not in the package
    assert one_line(caught.value) is None


def failing(error):
    @guard()
    def main():
        raise error

    return main


def test_a_reported_command_prints_the_line_and_exits(capsys, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        failing(ConfigError("trainer.x:\n no"))()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "ConfigError: trainer.x: no\n"
    with pytest.raises(SystemExit) as caught:
        failing(KeyboardInterrupt())()
    assert caught.value.code == 130
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())()
    monkeypatch.setenv(user_errors.TRACEBACK, "1")
    with pytest.raises(ConfigError):
        failing(ConfigError("x"))()


def test_a_list_of_problems_keeps_one_line_for_each():
    error = ConfigError("2 things are missing:\n  1. a\n  2. b")
    error.problems = ["a", "b"]
    assert text_of(error) == "ConfigError: 2 things are missing:\n  1. a\n  2. b"


def test_it_imports_neither_torch_nor_nemo():
    code = (
        "import sys, nemo_desta.user_errors\n"
        "print([name for name in ('torch', 'nemo', 'transformers', 'hydra') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
