"""`desta new`: what it writes composes with the shipped configs, is checked, makes rows and trains."""

import json
from pathlib import Path

import pytest
from hydra import compose
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathElement
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora import CorpusError
from nemo_desta.recipes.new_project import main, plan_project
from nemo_desta.recipes.run import run_recipe
from nemo_desta.testing.data import tiny_rows, write_tone
from nemo_desta.testing.perception import tiny_whisper

ROOT = Path(__file__).parents[2]
CONF = next(folder for folder in (ROOT / "conf", ROOT / "nemo_desta/conf") if folder.is_dir())
LLM = "package:demo/assets/llm"


def labels(folder: Path, num_clips: int = 24, *, speakers: int = 6) -> Path:
    """A table with names of its own, and a tone per row; no split."""
    lines = ["file;mood;speaker;text"]
    for i in range(num_clips):
        name = f"clips/c{i}.wav"
        (folder / "clips").mkdir(exist_ok=True)
        write_tone(folder / name, 0.4 + i % 4 / 10, pitch_hz=200 + 10 * i)
        lines.append(f"{name};{('glad', 'sad')[i % 2]};s{i % speakers};number {i}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def composed(folder: Path, name: str, primary: Path, *overrides: str) -> DictConfig:
    """The config of a command with ``--config-dir folder --config-name name``."""
    places = create_config_search_path(str(primary))
    places.get_path().insert(-1, SearchPathElement("command-line", f"file://{folder}"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("test", places)
    try:
        return compose(name, list(overrides))
    finally:
        GlobalHydra.instance().clear()


def rows_of(project: Path) -> dict[str, int]:
    """Rows by split, made by the recipe as it was written."""
    recipe = OmegaConf.to_container(composed(project, "recipe", CONF / "recipes"))
    recipe.pop("recipe")
    run_recipe({**recipe, "progress": False, "report": False})
    files = (project / "rows/rows").iterdir()
    return {path.name.partition("-")[0]: len(path.read_text().splitlines()) for path in files}


def trained(project: Path, *overrides: str) -> Path:
    """The model's folder after ``check=true`` and two steps on the CPU."""
    from nemo_desta.training.fit import fit

    small = (
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        "model.lr_scheduler.warmup_steps=1",
        "data.train_ds.num_workers=0",
    )
    small += ("trainer.val_check_interval=2", "exp_manager.checkpoint_callback_params.every_n_train_steps=1")
    small += ("exp_manager.create_tensorboard_logger=false", *overrides)
    assert fit(composed(project, project.name, CONF, *small, "check=true")) is None
    assert fit(composed(project, project.name, CONF, *small)) is not None
    return project / "training"


def test_a_table_becomes_rows_and_a_trained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "mine"
    whisper = tiny_whisper(tmp_path / "whisper", window_secs=2.0)
    arguments = [str(project), "--llm", LLM, "--corpus", str(labels(tmp_path)), "--whisper", whisper]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "clips: train 20, valid 4" in said and f"desta train --config-dir {project} --config-name mine" in said
    assert sorted(path.name for path in project.iterdir()) == ["card.yaml", "mine.yaml", "recipe.yaml"]
    rows = rows_of(project)
    assert rows.keys() == {"train", "valid"} and 15 <= rows["train"] <= 20
    run = trained(project)
    assert (run / "model/projector.safetensors").is_file() and list((run / "checkpoints").iterdir())
    assert main(arguments) == 1 and "is not empty: give a new name" in capsys.readouterr().err


def test_finished_rows_without_validation_keep_the_newest_checkpoints(tmp_path: Path) -> None:
    rows = tiny_rows(tmp_path / "data", 16)
    whisper = tiny_whisper(tmp_path / "whisper", window_secs=2.0)
    project = plan_project(tmp_path / "ready", LLM, str(rows), whisper=whisper)
    project.write()
    assert list(project.files) == ["ready.yaml"] and project.splits["train"] == 16
    kept = {path.name for path in (trained(tmp_path / "ready") / "checkpoints").iterdir()}
    assert {"step=1.ckpt", "step=2.ckpt"} <= kept


def test_a_corpus_of_one_speaker_has_no_validation_and_says_so(tmp_path: Path) -> None:
    project = plan_project(tmp_path / "mine", LLM, str(labels(tmp_path, 4, speakers=1)))
    assert "validation_ds: null" in project.files["mine.yaml"] and "one group" in project.next_steps()
    assert "monitor: step" in project.files["mine.yaml"] and "layer_ids: [3, 6, 9, 12]" in project.files["mine.yaml"]


def test_a_card_is_used_as_it_is_and_a_table_below_the_data_root_is_found(tmp_path: Path) -> None:
    table = labels(tmp_path, 8)
    plan_project(tmp_path / "first", LLM, str(table)).write()
    second = plan_project(tmp_path / "second", LLM, str(tmp_path / "first/card.yaml"), data_root=str(tmp_path))
    assert "card.yaml" not in second.files and str(tmp_path / "first/card.yaml") in second.files["recipe.yaml"]
    (tmp_path / "meta").mkdir()
    table.rename(tmp_path / "meta/labels.csv")
    third = plan_project(tmp_path / "third", LLM, str(tmp_path / "meta/labels.csv"), data_root=str(tmp_path))
    assert 'files: "meta/labels.csv"' in third.files["card.yaml"] and third.splits.total() == 8


def test_a_shipped_card_needs_the_folder_of_a_copy(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    for name in ("0_jackson_0", "1_jackson_0", "2_george_0"):
        write_tone(tmp_path / f"recordings/{name}.wav", 0.3)
    project = plan_project(tmp_path / "mine", LLM, "fsdd", data_root=str(tmp_path))
    assert 'corpus: "fsdd"' in project.files["recipe.yaml"] and "card.yaml" not in project.files
    assert project.splits.total() > 0
    with pytest.raises(ConfigError, match="fsdd is a shipped card: give --data-root"):
        plan_project(tmp_path / "mine", LLM, "fsdd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "demo"}, "'demo' cannot be a config's name"),
        ({"folder": "alarm_ca"}, "'alarm_ca' cannot be a config's name"),
        ({"folder": "recipe"}, "'recipe' cannot be a config's name"),
        ({"folder": "a b"}, "cannot be a config's name"),
        ({"llm": "./nowhere"}, "--llm: nothing at './nowhere'"),
        ({"llm": "package:nothing"}, "--llm: .*ships no such file"),
        ({"whisper": "/no/whisper"}, "--whisper: nothing at"),
        ({"corpus": "no.csv"}, "--corpus: no file 'no.csv'"),
        ({"data_root": "/no/root"}, "--data-root: no folder"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_written(tmp_path: Path, change: dict, message: str) -> None:
    given = {"folder": "mine", "llm": LLM, "corpus": str(labels(tmp_path, 2)), **change}
    with pytest.raises((ValueError, OSError), match=message):
        plan_project(tmp_path / given.pop("folder"), **given)


def test_a_wrong_row_is_named_before_anything_is_written(tmp_path: Path) -> None:
    table = labels(tmp_path, 4)
    table.write_text(table.read_text() + "clips/c0.wav;glad;s0;again\n")
    with pytest.raises(CorpusError, match=r"labels\.csv:6: id 'c0' was seen before"):
        plan_project(tmp_path / "mine", LLM, str(table))
    table.write_text(json.dumps({"mood": "glad"}))
    with pytest.raises(CorpusError, match="no rows"):
        plan_project(tmp_path / "mine", LLM, str(table))
