import json
import pickle
from pathlib import Path

import pytest

from nemo_desta.data.rows import (
    JsonlIndex,
    RowError,
    check_row,
    duplicate_rows,
    expand_paths,
    read_rows,
    row_guard,
)
from nemo_desta.data.testing import tiny_row, write_jsonl

# A line of the public DeSTA-AQA5M: ids repeat per clip, transcripts may be null, nothing but these fields.
AQA_LINE = {
    "id": "AccentDB/data/american/speaker_01/american_s01_001.wav",
    "dataset": "AccentDB",
    "seed_description": "[00:00-00:03] Hello. (Accent: American, Duration: 3s)",
    "prompt": "Guess the accent.",
    "messages": [
        {"role": "system", "content": "Focus on the audio clips and instructions."},
        {
            "role": "user",
            "content": "<start_audio><|AUDIO|><end_audio>\nGuess the accent.",
            "audios": [{"audio": "AccentDB/data/american/speaker_01/american_s01_001.wav", "text": None}],
        },
    ],
    "response": "It sounds American.",
}


def test_read_rows_keeps_a_public_desta_row_as_it_is(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "aqa.jsonl", [AQA_LINE, {**AQA_LINE, "prompt": "Another question."}])
    rows = list(read_rows(path))
    assert rows[0] == AQA_LINE
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": ""}, "'id' must be a non-empty string, found ''"),
        ({"response": None}, "row 'a': 'response' must be a non-empty string, found None"),
        ({"messages": []}, "'messages' must be a non-empty list, found []"),
        ({"messages": [{"role": "user"}]}, "message 0: 'content' must be a string, but it is missing"),
        (
            {"messages": [{"role": "user", "content": "x", "audios": ["a.wav"]}]},
            "audio 0: must be an object, found str",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "audios": [{"audio": 3}]}]},
            "'audio' must be a path, found 3",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "belongs into 'response'"),
    ],
)
def test_check_row_says_what_is_wrong(change: dict, words: str) -> None:
    with pytest.raises(RowError) as caught:
        check_row({**tiny_row("a", "a.wav"), **change})
    assert words in str(caught.value)
    assert caught.value.reason == "schema"


def test_bad_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(AQA_LINE) + "\n\n{'id': 'single quotes'}\n" + json.dumps(AQA_LINE) + "\n")
    index = JsonlIndex(path)
    assert len(index) == 3  # the empty line is no row
    with pytest.raises(RowError, match=r"rows\.jsonl:3: not a JSON object") as caught:
        index.row(1)
    assert caught.value.reason == "not_json"
    assert index.row(2) == AQA_LINE  # a bad line spoils no other


def test_invalid_utf8_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "\xff\xfe"}\n')
    with pytest.raises(RowError, match=r"rows\.jsonl:1"):
        JsonlIndex(path).row(0)


@pytest.mark.parametrize(
    "line", ['{"id": "\\ud800"}', "[" * 100_000, '"text"', '{"id": "a", "messages": NaN}', "\0", "9" * 10_000]
)
def test_odd_json_is_a_bad_row_and_no_crash(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RowError, match=r"rows\.jsonl:1"):
        JsonlIndex(path).row(0)


@pytest.mark.parametrize("duration", [-1, float("nan"), float("inf"), "3"])
def test_impossible_durations_are_bad_rows(duration: object) -> None:
    row = tiny_row("a", "a.wav")
    row["messages"][-1]["audios"][0]["duration"] = duration
    with pytest.raises(RowError, match="'duration' must be seconds"):
        check_row(row)


def test_index_reads_any_row_of_many_shards_in_any_order_and_after_pickling(tmp_path: Path) -> None:
    for shard in range(12):
        rows = [tiny_row(f"{shard}-{i}", "ä.wav", response="ö" * (i + 1)) for i in range(shard % 4)]
        write_jsonl(tmp_path / f"part-{shard:03d}.jsonl", rows)
    index = JsonlIndex(str(tmp_path / "part-{000..011}.jsonl"))
    expected = [f"{shard}-{i}" for shard in range(12) for i in range(shard % 4)]
    assert [index.row(i)["id"] for i in range(len(index))] == expected
    assert index.row(7)["id"] == expected[7]
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.row(i)["id"] for i in reversed(range(len(copy)))] == expected[::-1]
    assert index.where(0).endswith("part-001.jsonl:1")
    with pytest.raises(IndexError):
        index.row(len(index))


def test_last_line_without_newline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(AQA_LINE) + "\n" + json.dumps(AQA_LINE))
    assert [row["id"] for row in read_rows(path)] == [AQA_LINE["id"]] * 2


@pytest.mark.parametrize("pattern", ["s-{0..2}.jsonl", "s-_OP_0..2_CL_.jsonl", "s-*.jsonl", "s-{0,1,2}.jsonl"])
def test_expand_paths_knows_ranges_lists_globs_and_nemos_spelling(tmp_path: Path, pattern: str) -> None:
    for number in range(3):
        (tmp_path / f"s-{number}.jsonl").touch()
    assert [p.name for p in expand_paths(str(tmp_path / pattern))] == ["s-0.jsonl", "s-1.jsonl", "s-2.jsonl"]


def test_expand_paths_names_a_missing_shard(tmp_path: Path) -> None:
    (tmp_path / "s-0.jsonl").touch()
    with pytest.raises(FileNotFoundError, match=r"no file matches .*s-1\.jsonl"):
        expand_paths(str(tmp_path / "s-{0..1}.jsonl"))


def test_duplicate_rows_lets_one_clip_have_several_prompts() -> None:
    rows = [AQA_LINE, {**AQA_LINE, "prompt": "Another question."}, AQA_LINE]
    assert duplicate_rows(rows) == [AQA_LINE["id"]]


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), TypeError("odd"), OverflowError("inf")])
def test_any_exception_of_a_row_becomes_a_row_error(error):
    with pytest.raises(RowError, match=f"rows.jsonl:3: {type(error).__name__}") as raised, row_guard("rows.jsonl:3"):
        raise error
    assert raised.value.reason == "unexpected"


def test_a_row_error_passes_the_guard_unchanged():
    error = RowError("tags", "two tags, one audio")
    with pytest.raises(RowError) as raised, row_guard("rows.jsonl:3"):
        raise error
    assert raised.value is error
