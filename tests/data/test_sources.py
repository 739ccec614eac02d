import json
import os
from pathlib import Path

import numpy as np
import pytest

from nemo_desta.config import ConfigError
from nemo_desta.data.audio_io import AudioError, load_audio
from nemo_desta.data.rows import RowError
from nemo_desta.data.shar import SharSource, write_shar
from nemo_desta.data.sources import JsonlSource, open_input_cfg
from nemo_desta.data.testing import tiny_row, tiny_rows, write_jsonl, write_tone


def entries(folder: Path, sizes: dict[str, int]) -> dict[str, dict]:
    """One JSONL per name, ready for an input_cfg."""
    for name, size in sizes.items():
        write_jsonl(folder / f"{name}.jsonl", [tiny_row(f"{name}{i}", None) for i in range(size)])
    return {name: {"type": "desta", "rows": str(folder / f"{name}.jsonl")} for name in sizes}


def test_without_weights_every_row_comes_once(tmp_path: Path) -> None:
    items = entries(tmp_path, {"a": 3, "b": 5})
    assert [(s.source.name, s.share) for s in open_input_cfg([items["a"], items["b"]])] == [("a", None), ("b", None)]


def test_shares_multiply_through_groups_and_fall_back_to_row_counts(tmp_path: Path) -> None:
    items = entries(tmp_path, {"a": 3, "b": 5, "c": 1, "d": 3})
    inner = [{**items["a"], "weight": 3}, {**items["b"], "weight": 1}]
    cfg = [
        {"type": "group", "weight": 0.8, "input_cfg": inner},
        {"type": "group", "weight": 0.2, "input_cfg": [items["c"], items["d"]]},
    ]
    shares = {s.source.name: s.share for s in open_input_cfg(cfg)}
    assert shares == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.05, "d": 0.15})


def test_input_cfg_mistakes_are_named(tmp_path: Path) -> None:
    items = entries(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(ConfigError, match=r"1 of 2 entries have a weight"):
        open_input_cfg([{**items["a"], "weight": 1}, items["b"]])
    with pytest.raises(ConfigError, match=r"unknown key 'input_cfg.0.wieght'. Did you mean 'weight'"):
        open_input_cfg([{**items["a"], "wieght": 1}])
    with pytest.raises(ConfigError, match=r"type 'nemo_tarred' does not hold DeSTA rows"):
        open_input_cfg([{"type": "nemo_tarred"}])
    with pytest.raises(ConfigError, match="needs 'rows'"):
        open_input_cfg([{"type": "desta", "rows": "???"}])
    with pytest.raises(ConfigError, match="is empty"):
        open_input_cfg([])
    with pytest.raises(ConfigError, match="must be above 0"):
        open_input_cfg([{**items["a"], "weight": 0}])
    with pytest.raises(ConfigError, match="audio_root 'libry'.*Did you mean 'libri'"):
        open_input_cfg([{**items["a"], "audio_root": "libry"}], {"libri": tmp_path})


def test_audio_files_start_from_the_manifests_folder_or_the_named_roots(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "corpus").mkdir()
    write_tone(tmp_path / "rows" / "near.wav", 0.1)
    write_tone(tmp_path / "corpus" / "far.wav", 0.1)
    path = write_jsonl(tmp_path / "rows" / "r.jsonl", [tiny_row("near", "near.wav"), tiny_row("far", "far.wav")])
    source = JsonlSource(path)
    assert source.audio_files(0, source.row(0)) == [tmp_path / "rows" / "near.wav"]
    with pytest.raises(AudioError, match="no file 'far.wav'"):
        source.audio_files(1, source.row(1))
    by_dataset = JsonlSource(path, {"tones": tmp_path / "corpus"})  # rows say dataset "tones"
    assert by_dataset.audio_files(1, by_dataset.row(1)) == [tmp_path / "corpus" / "far.wav"]
    by_name = JsonlSource(path, {"c": tmp_path / "corpus"}, audio_root="c")
    assert by_name.audio_files(1, by_name.row(1)) == [tmp_path / "corpus" / "far.wav"]


@pytest.fixture(scope="module")
def shar(tmp_path_factory: pytest.TempPathFactory) -> tuple[JsonlSource, SharSource]:
    """Five rows in shards of two: one clip, two clips (the second longer), no clip, and two more."""
    folder = tmp_path_factory.mktemp("shar")
    path = tiny_rows(folder, 4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_tone(folder / "wavs" / "long.wav", 2.5, sampling_rate=8000)
    user = rows[1]["messages"][-1]
    user["content"] += " and <|AUDIO|>"
    user["audios"].append({"audio": "wavs/long.wav", "text": None})
    rows.insert(2, tiny_row("text-only", None))
    write_jsonl(path, rows)
    source = JsonlSource(path)
    write_shar(source, folder / "out", shard_size=2)
    return source, SharSource(folder / "out")


def test_shar_holds_the_same_rows_and_audio(shar: tuple[JsonlSource, SharSource]) -> None:
    source, packed = shar
    assert len(packed) == len(source) == 5
    for i in reversed(range(5)):
        row = source.row(i)
        assert packed.row(i) == row
        expected = [load_audio(file) for file in source.audio_files(i, row)]
        found = [load_audio(file) for file in packed.audio_files(i, row)]
        assert [len(a) for a in found] == [len(a) for a in expected]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)  # FLAC is 16 bit


def test_shar_is_readable_by_lhotse(shar: tuple[JsonlSource, SharSource]) -> None:
    from lhotse import CutSet

    cuts = list(CutSet.from_shar(in_dir=str(shar[1].folder)))
    assert [cut.custom["row"]["id"] for cut in cuts] == [shar[0].row(i)["id"] for i in range(5)]
    assert cuts[1].audio_1.duration == 2.5


def test_shar_names_a_lost_recording_and_a_foreign_folder(
    shar: tuple[JsonlSource, SharSource], tmp_path: Path
) -> None:
    row = shar[1].row(0)
    row["messages"][-1]["audios"].append({"audio": "more.wav"})
    with pytest.raises(AudioError, match="2 audios in the row but 1 in the tars"):
        shar[1].audio_files(0, row)
    with pytest.raises(FileNotFoundError, match="not a lhotse shar folder"):
        SharSource(tmp_path)
    write_jsonl(tmp_path / "cuts.000000.jsonl", [{"id": "x", "custom": {}}])
    with pytest.raises(RowError, match=r"cuts\.000000\.jsonl:1: the cut has no custom field 'row'"):
        SharSource(tmp_path).row(0)


def test_write_shar_refuses_a_folder_in_use(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 1)
    with pytest.raises(FileExistsError, match="is not empty"):
        write_shar(JsonlSource(path), tmp_path)
    assert os.path.exists(path)
