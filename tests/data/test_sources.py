import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.audio_io import AudioError, load_audio
from nemo_desta.data.costs import RowCosts
from nemo_desta.data.dataset import RowDataset
from nemo_desta.data.row_schema import TRAINING
from nemo_desta.data.row_source import WeightedSource
from nemo_desta.data.sampler import BatchPlan, PlanSettings
from nemo_desta.data.shar import SharSource, write_shar
from nemo_desta.data.sources import JsonlSource, open_input_cfg, read_input_cfg
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.testing.data import tiny_row, tiny_rows, tiny_tokenizer, write_jsonl, write_tone


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


def test_entries_of_a_mapping_share_what_each_says(tmp_path: Path) -> None:
    entries(tmp_path, {"a": 3, "b": 1, "c": 2})
    each = {"rows": f"{tmp_path}/<name>.jsonl", "audio_roots": {"default": f"{tmp_path}/<name>"}}
    cfg = {
        "each": each,
        "b": {"weight": 3},
        "more": {"type": "group", "weight": 1, "input_cfg": {"each": each, "a": {}}},
    }
    assert {s.source.name: s.share for s in open_input_cfg(cfg)} == {"b": 0.75, "a": 0.25}
    assert read_input_cfg(cfg)[0]["audio_roots"] == {"default": f"{tmp_path}/b"}
    with pytest.raises(ConfigError, match=r"unknown key 'input_cfg.b.wieght'. Did you mean 'weight'"):
        read_input_cfg({"each": each, "b": {"wieght": 1}})
    with pytest.raises(ConfigError, match="1 of 2 entries have a weight"):
        read_input_cfg({"each": each, "a": {"weight": 1}, "b": {}})
    with pytest.raises(FileNotFoundError, match=r"no file matches .*gone\.jsonl"):
        open_input_cfg({"each": each, "gone": {}})


def test_only_rows_of_some_datasets_are_read(tmp_path: Path) -> None:
    rows = []
    for i, name in enumerate(["A B", "c", "A B", "d", "c"]):
        odd = {"seed_description": 'it says "dataset": "c"', "dataset": name, "prompt": "Q" * i}
        rows.append({**odd, **{k: v for k, v in tiny_row(f"r{i}", None).items() if k not in odd}})
    path = write_jsonl(tmp_path / "x.jsonl", rows)
    path.write_text(path.read_text().rstrip("\n"))
    for wanted, found in (
        (["A B"], ["r0", "r2"]),
        (["c", "d"], ["r1", "r3", "r4"]),
        (None, [f"r{i}" for i in range(5)]),
    ):
        ((source, _),) = open_input_cfg([{"rows": str(path), "datasets": wanted}])
        assert [source.row(i)["id"] for i in range(len(source))] == found
        copy = pickle.loads(pickle.dumps(source))
        assert [copy.row(i)["id"] for i in reversed(range(len(copy)))] == found[::-1]
    assert source.where(0).endswith("x.jsonl:1")
    with pytest.raises(ConfigError, match=r"no row of E in .*x.jsonl \(datasets\); there are rows of: A B, c, d"):
        open_input_cfg([{"rows": str(path), "datasets": ["E"]}])
    with pytest.raises(ConfigError, match="is a shar"):
        open_input_cfg([{"rows": str(tmp_path), "datasets": ["E"]}])


def test_a_datasets_own_root_need_not_have_a_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "both" / "tones").mkdir(parents=True)
    write_tone(tmp_path / "here" / "deep" / "x.wav", 0.1)
    write_tone(tmp_path / "both" / "tones" / "y.wav", 0.1)
    path = write_jsonl(tmp_path / "r.jsonl", [tiny_row("x", "tones/deep/x.flac"), tiny_row("y", "tones/y.wav")])
    source = JsonlSource(path, {"tones": tmp_path / "here"})  # rows say dataset "tones"
    assert source.audio_files(0, source.row(0)) == [tmp_path / "here" / "deep" / "x.wav"]
    with pytest.raises(AudioError, match="no file 'tones/y.wav' under audio root 'tones'"):
        source.audio_files(1, source.row(1))
    source = JsonlSource(path, {"tones": tmp_path / "both"})
    assert source.audio_files(1, source.row(1)) == [tmp_path / "both" / "tones" / "y.wav"]
    (tmp_path / "both" / "deep").symlink_to("/etc")
    with pytest.raises(AudioError, match="outside every audio root"):
        JsonlSource(path, {"tones": tmp_path / "both"}).roots.resolve("tones/deep/hostname", dataset="tones")


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


def planned(folder: Path, source: object, **settings: object) -> tuple[list, list]:
    """Loaded batches and bad rows of one epoch, through plan and dataset."""
    prompts = PromptBuilder(tiny_tokenizer())
    costs = RowCosts(
        [source], prompts, lambda samples: samples // 1600, sampling_rate=16_000, max_row_tokens=2000, **settings
    )
    plan = BatchPlan([WeightedSource(source, None)], costs.tokens, PlanSettings(2000, shuffle=False))
    dataset = RowDataset([source], prompts, sampling_rate=16_000)
    batches = [dataset[batch] for batch in plan.batches(0)]
    return [row_id for b in batches for row_id in b["row_ids"]], [bad for b in batches for bad in b["bad_rows"]]


class Poison:
    """A source as somebody else may write it: two of its rows raise what no one expects."""

    name, rules = "poison", TRAINING

    def __len__(self) -> int:
        return 5

    def row(self, i: int) -> dict:
        if i == 1:
            raise MemoryError
        return tiny_row(f"row-{i}", None if i < 3 else "a.wav")

    def where(self, i: int) -> str:
        return f"poison:{i + 1}"

    def audio_files(self, i: int, row: dict) -> list:
        if i == 3:
            raise KeyError("a.wav")
        return [self.wav] if i == 4 else []


@pytest.mark.parametrize("text_tokens", ["exact", "estimate"])
def test_whatever_a_source_raises_the_row_is_named_and_the_others_are_used(tmp_path: Path, text_tokens: str) -> None:
    source = Poison()
    source.wav = write_tone(tmp_path / "a.wav", 0.1)
    used, bad = planned(tmp_path, source, text_tokens=text_tokens)
    assert used == ["row-0", "row-2", "row-4"]
    assert [(b["where"], b["reason"]) for b in bad] == [("poison:2", "unexpected"), ("poison:4", "unexpected")]
    assert bad[0]["detail"].startswith("MemoryError") and bad[1]["id"] == "row-3"


def test_poison_rows_are_named_by_plan_and_dataset(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 1)
    good = json.loads(path.read_text())
    poison = [
        {"audio": "/"},
        {"audio": "//"},
        {"audio": "x.raw"},
        {"audio": "wavs/000.wav", "duration": 1e308},
        {"audio": "wavs/000.wav", "duration": True},
        {"audio": "wavs/000.wav", "text": "\ud83d"},
    ]
    (tmp_path / "x.raw").write_bytes(bytes(100))
    rows = [good]
    for entry in poison:
        user = {**good["messages"][-1], "audios": [entry]}
        rows.append({**good, "messages": [user]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    used, bad = planned(tmp_path, JsonlSource(path))
    assert used == ["row-000"]
    assert sorted(b["where"].rpartition(":")[2] for b in bad) == ["2", "3", "4", "5", "6", "7"]


def test_unknown_keys_are_named_once_per_file_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        rows = [{**tiny_row(f"{name}{i}", None), "mos": 3, **({"promt_id": 1} if i == 2 else {})} for i in range(4)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    used, bad = planned(tmp_path, JsonlSource([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]))
    assert len(used) == 8 and not bad
    named = [record.getMessage() for record in caplog.records if "unknown key '" in record.getMessage()]
    assert len(named) == 4
    assert "a.jsonl:3: unknown key 'promt_id', kept and not read. Did you mean 'prompt_id'?" in " ".join(named)
    assert "unknown keys in rows of 'a': 'mos' in 8 rows, 'promt_id' in 2 rows" in caplog.text


def test_strict_keys_of_an_entry_refuses_or_keeps_fields_of_ones_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", [{**tiny_row("a", None), "truncate": 1}, tiny_row("b", None)]))
    [kept] = open_input_cfg([{"rows": path, "strict_keys": False}])
    assert planned(tmp_path, kept.source) == (["a", "b"], []) and "unknown key" not in caplog.text
    for strict in (True, None):
        [source] = open_input_cfg([{"rows": path, "strict_keys": strict}])
        used, [bad] = planned(tmp_path, source.source)
        assert used == ["b"] and (bad["id"], bad["reason"]) == ("?", "unknown_key")
    with pytest.raises(ConfigError, match="strict_keys' must be true or false or null, found 'no'"):
        open_input_cfg([{"rows": path, "strict_keys": "no"}])


def test_shar_rows_follow_the_same_rules(tmp_path: Path) -> None:
    lines = [{"id": str(i), "custom": {"row": {**tiny_row("a", None), **more}}} for i, more in
             enumerate([{"id": 7}, {"truncated": "false"}, {"mos": 3}])]  # fmt: skip
    write_jsonl(tmp_path / "cuts.000000.jsonl", lines)
    [lax, strict] = [open_input_cfg([{"rows": str(tmp_path), "strict_keys": s}])[0].source for s in (None, True)]
    assert lax.row(0)["id"] == "7" and lax.row(2)["mos"] == 3
    with pytest.raises(RowError, match="'truncated' must be true or false"):
        lax.row(1)
    with pytest.raises(RowError, match=r"cuts.000000.jsonl:3: .*unknown key 'mos'"):
        strict.row(2)


def test_a_packed_source_is_named_without_its_endings(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 3)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    source = JsonlSource(packed)
    assert source.name == "rows" and planned(tmp_path, source)[0] == ["row-000", "row-001", "row-002"]
