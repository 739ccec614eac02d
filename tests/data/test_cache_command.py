"""`desta cache`: what it lists and what it removes."""

import os
import time

import pytest
import torch

from nemo_desta.data.cache_command import main
from nemo_desta.data.remote import cache_folder
from nemo_desta.perception.feature_store import FeatureStore, shards


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_DESTA_CACHE", str(tmp_path))
    folder = cache_folder()
    for place, name, size, days in (("0" * 16, "a.tar", 3 << 20, 10), ("f" * 16, "b.jsonl", 1 << 20, 1)):
        (folder / place).mkdir(parents=True)
        (folder / place / "stamp.json").write_text("{}")
        (folder / place / name).write_bytes(bytes(size))
        os.utime(folder / place / name, 2 * (time.time() - days * 86_400,))
    (folder / "mine").mkdir()
    (folder / "mine" / "kept.txt").write_text("not a copy")
    return folder


def test_copies_are_listed_and_nothing_is_removed(cache, capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3.00 MiB" in lines[0] and "a.tar" in lines[0] and "b.jsonl" in lines[1]
    assert lines[2].startswith("2 copies, 4.00 MiB, in ") and len(list(cache.iterdir())) == 3


def test_only_copies_of_that_age_are_removed(cache, capsys):
    assert main(["--clear", "--older-than", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 copies, 3.00 MiB, removed from ")
    assert sorted(path.name for path in cache.iterdir()) == ["f" * 16, "mine"]
    assert main(["--clear"]) == 0 and [path.name for path in cache.iterdir()] == ["mine"]


def test_an_empty_cache_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEMO_DESTA_CACHE", str(tmp_path / "none"))
    assert main([]) == 0 and "0 copies" in capsys.readouterr().out


def test_features_are_listed_trimmed_and_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEMO_DESTA_CACHE", str(tmp_path))
    assert main(["--features"]) == 0 and "no features in" in capsys.readouterr().out
    about = {"encoder": {"name": "whisper"}, "layer_ids": [2, 4], "stored_in": "torch.bfloat16"}
    store = FeatureStore(tmp_path / "features", about)
    for number in range(3):
        store.put({str(number): torch.zeros(1, 1, 250_000)})
        os.utime(store.folder / store._shard_of[str(number)], 2 * (time.time() - (3 - number) * 86_400,))
    assert main(["--features"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "whisper, layers [2, 4], torch.bfloat16" in lines[0] and "2.86 MiB" in lines[0] and "1.0 days" in lines[0]
    assert lines[1].startswith("3 shards of features, 2.86 MiB, in ")
    assert main(["--features", str(tmp_path / "features"), "--max-gb", "0.0021"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 shards")
    assert main(["--features", "--clear", "--older-than", "1.5"]) == 0
    assert store.get("0") is None and store.get("1") is None and store.get("2") is not None
    assert main(["--features", "--clear"]) == 0 and not shards(tmp_path / "features")
