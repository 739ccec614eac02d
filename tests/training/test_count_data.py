"""``desta train count=true``: rows and hours of each set beside the papers' figures, without any weights."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_desta.errors import ConfigError
from nemo_desta.testing.data import tiny_row, write_jsonl, write_tone
from nemo_desta.training import count_data as module
from nemo_desta.training.command import train
from nemo_desta.training.count_data import count_data


def rows(folder: Path, name: str, count: int, secs: float | None, dataset: str | None = None) -> None:
    made = [{**tiny_row(f"{name}{i}", f"{i}.wav"), "dataset": dataset or name} for i in range(count)]
    for row in made:
        row["messages"][-1]["audios"][0]["duration"] = secs
    write_jsonl(folder / f"{name}.jsonl", made)


def mix(folder: Path, **entries: dict) -> dict:
    each = {"rows": f"{folder}/<name>.jsonl", "audio_roots": {"default": f"{folder}/<name>"}}
    return {"train_ds": {"input_cfg": {"each": each, **entries}}}


def cells(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()}


def test_rows_and_hours_stand_beside_the_papers(tmp_path: Path) -> None:
    rows(tmp_path, "esc50", 4, 900.0)
    rows(tmp_path, "mine", 2, 1800.0)
    rows(tmp_path, "nsynth", 2, None)
    (tmp_path / "nsynth").mkdir()
    for i in (0, 1):
        write_tone(tmp_path / "nsynth" / f"{i}.wav", 1.8)
    table = count_data(mix(tmp_path, esc50={}, mine={}, nsynth={}, gone={}))
    found = cells(table)
    assert found["set"] == ["rows", "hours", "alarm's", "rows", "hours"]
    assert found["esc50"] == ["4", "1.00", "2,000", "2.78"]
    assert found["mine"] == ["2", "1.00", "-", "-"]
    assert found["nsynth"] == ["2", "0.00", "289,205", "321.34"]
    assert found["all"] == ["8", "2.00", "291,205", "324.12"]
    assert "not here: gone (no file matches" in table


def test_a_set_is_known_by_the_papers_name_for_it(tmp_path: Path) -> None:
    rows(tmp_path, "shard", 3, 1.0, dataset="globe_v3")
    assert cells(count_data(mix(tmp_path, shard={})))["globe_v3"] == ["3", "0.00", "392,528", "542.58"]


def test_large_sources_are_estimated_and_what_is_not_known_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_ROWS", 5)
    rows(tmp_path, "big", 20, 3600.0)
    rows(tmp_path, "mute", 3, None)
    with open(tmp_path / "mute.jsonl", "a") as file:
        file.write("{}\n")
    table = count_data(mix(tmp_path, big={}, mute={}))
    assert cells(table)["big"][:2] == ["20", "20.00"] and cells(table)["mute"][:2] == ["3", "-"]
    assert "big: estimated from 5 of 20 rows" in table and "mute: 1 lines are no rows" in table
    assert "mute: 3 of 3 rows have no length and no audio file here" in table
    with pytest.raises(ConfigError, match="no rows in data: not here: x"):
        count_data(mix(tmp_path, x={}))


def test_the_command_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(tmp_path, "esc50", 1, 1.0)
    cfg = {"count": True, "model": {"llm": {"path": "???"}}, "data": mix(tmp_path, esc50={})}
    train(OmegaConf.create(cfg))
    assert "alarm's rows" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="'count' must be true or false"):
        train(OmegaConf.create({**cfg, "count": "yes"}))
