import gzip
import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

import pytest
import zstandard

from nemo_desta.data import packed
from nemo_desta.data import rows as rows_module
from nemo_desta.data.rows import JsonlIndex, RowRules, check_row, duplicate_rows, expand_paths, parse_row, read_rows
from nemo_desta.errors import ConfigError, RowError, row_guard
from nemo_desta.testing.data import tiny_row, write_jsonl

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
        ({"id": ""}, "'id' must be a non-empty string or a whole number, found ''"),
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


def with_user(**changes: object) -> dict:
    """A row about one clip whose user message is changed; None takes a key away."""
    row = tiny_row("a", "a.wav")
    message = {**row["messages"][-1], **changes}
    return {**row, "messages": [row["messages"][0], {k: v for k, v in message.items() if v is not None}]}


def with_clip(**changes: object) -> dict:
    return with_user(audios=[{"audio": "a.wav", "text": None, **changes}])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (with_user(audios=None, audio=[{"audio": "a.wav"}]), "message 1: unknown key 'audio'. Did you mean 'audios'?"),
        (with_user(value="x"), "message 1: unknown key 'value'. Did you mean 'content'?"),
        (with_clip(transcript="hello"), "message 1, audio 0: unknown key 'transcript'. Did you mean 'text'?"),
        (with_clip(durations=1.0), "audio 0: unknown key 'durations'. Did you mean 'duration'?"),
        ({**tiny_row("a", "a.wav"), "truncate": True}, "row 'a': unknown key 'truncate', and no 'truncated'"),
        ({**tiny_row("a", None), "audios": ["a.wav"]}, "'audios' beside 'messages' is not read"),
        ({**tiny_row("a", None), "messages": [{"role": "user", "content": "x"}], "system": "Hi"}, "'system' beside"),
    ],
)
def test_a_key_that_nothing_reads_is_a_bad_row_where_it_changes_what_is_trained(row: dict, words: str) -> None:
    with pytest.raises(RowError) as caught:
        check_row(row)
    assert words in str(caught.value)
    assert caught.value.reason == "unknown_key"


def test_a_misspelt_response_is_named_by_what_was_meant() -> None:
    row = tiny_row("a", None)
    row["reponse"] = row.pop("response")
    with pytest.raises(RowError, match="unknown key 'reponse', and no 'response'"):
        check_row(row)


@pytest.mark.parametrize(
    ("role", "meant"),
    [("human", "user"), ("gpt", "assistant"), ("User", "user"), ("USER", "user"), ("systm", "system")],
)
def test_a_role_that_no_template_knows_is_a_bad_row(role: str, meant: str) -> None:
    with pytest.raises(RowError, match=f"message 1: role '{role}'. Did you mean '{meant}'"):
        check_row(with_user(role=role))


def test_the_audio_role_of_the_config_is_a_role() -> None:
    with pytest.raises(RowError, match="role 'audio'"):
        check_row(with_user(role="audio"))
    assert check_row(with_user(role="audio"), RowRules(audio_role="audio"))["id"] == "a"


@pytest.mark.parametrize("truncated", ["false", 1, [], {}])
def test_truncated_must_be_a_bool(truncated: object) -> None:
    with pytest.raises(RowError, match="'truncated' must be true or false, found"):
        check_row({**tiny_row("a", None), "truncated": truncated})


def test_fields_of_ones_own_are_kept_or_refused_as_asked() -> None:
    row = {**tiny_row("a", "a.wav"), "mos": 4.2, "truncate": True}
    assert check_row(row, RowRules(strict_keys=False)) == row
    del row["truncate"]
    assert check_row(row) == row
    with pytest.raises(RowError, match="unknown key 'mos'") as caught:
        check_row(row, RowRules(strict_keys=True))
    assert caught.value.reason == "unknown_key"
    with pytest.raises(RowError, match="unknown key 'transcript'"):  # never in an audio
        check_row(with_clip(transcript="x"), RowRules(strict_keys=False))


def test_provenance_of_the_recipes_and_public_rows_are_known() -> None:
    made = "stage prompt_id prompt_kind prompt_requires constraint seed attempt language split group corpus"
    row = {
        **AQA_LINE,
        **dict.fromkeys(made.split()),
        "llm": "x",
        "llm_revision": "y",
        "sampling": {},
        "truncated": False,
    }
    assert check_row({**row, "first_response": "x"}, RowRules(strict_keys=True))["dataset"] == "AccentDB"


@pytest.mark.parametrize("number", [7, 0, -1, 10**30])
def test_a_whole_number_is_an_id(number: int) -> None:
    assert check_row({**tiny_row("a", None), "id": number})["id"] == str(number)


@pytest.mark.parametrize("row_id", [True, 7.0, None, [], ""])
def test_other_ids_are_bad_rows(row_id: object) -> None:
    with pytest.raises(RowError, match="'id' must be a non-empty string or a whole number"):
        check_row({**tiny_row("a", None), "id": row_id})


@pytest.mark.parametrize("duration", [True, 1e308, 24 * 3600 + 1, 10**400, [1]])
def test_a_duration_that_no_recording_has_is_a_bad_row(duration: object) -> None:
    with pytest.raises(RowError, match="'duration' must be seconds"):
        check_row(with_clip(duration=duration))


@pytest.mark.parametrize("place", ["id", "prompt", "seed_description", "note"])
def test_half_a_surrogate_is_named_wherever_it_stands(tmp_path: Path, place: str) -> None:
    row = json.dumps({**tiny_row("a", None), place: "\ud83d"})
    with pytest.raises(RowError, match=r"rows.jsonl:1: .*half a surrogate pair") as caught:
        parse_row(row.encode(), "rows.jsonl:1")
    assert caught.value.reason == "not_json"


def test_nesting_without_end_is_named() -> None:
    line = b'{"id": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(RowError, match="rows.jsonl:1: .*nested too deeply"):
        parse_row(line, "rows.jsonl:1")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_of_rows_is_named_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(ConfigError, match=f"'{path}' .* is a .*rows are read from files"):
        JsonlIndex(path)


def test_a_line_longer_than_any_row_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROW_BYTES", 3 << 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * (4 << 20) + b"\n" + json.dumps(AQA_LINE).encode())
    index = JsonlIndex(path)
    assert len(index) == 2 and index.row(1) == AQA_LINE
    with pytest.raises(RowError, match=r"rows.jsonl:1: a line of 4,194,305 bytes") as caught:
        index.row(0)
    assert caught.value.reason == "too_big"


def test_rows_that_are_written_while_they_are_read_wait_for_the_next_run(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [AQA_LINE])
    index = JsonlIndex(path)
    with open(path, "a") as file:
        file.write(json.dumps(AQA_LINE) + "\n")
    assert len(index) == 1 and index.row(0) == AQA_LINE


def pack(data: bytes, how: str) -> bytes:
    """As gzip and zstd write it; "frames": in several parts, as parallel packers do."""
    if how == "gzip":
        return gzip.compress(data)
    if how == "frames":
        middle = len(data) // 2
        skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"meta"
        return skippable + b"".join(map(zstandard.compress, (data[:middle], data[middle:])))
    return zstandard.compress(data)


@pytest.mark.parametrize(("name", "how"), [("rows.jsonl.gz", "gzip"), ("rows.jsonl.zst", "zstd"),
                                           ("rows.jsonl.zst", "frames"), ("rows.jsonl", "gzip")])  # fmt: skip
def test_packed_rows_are_read_at_any_place(tmp_path: Path, name: str, how: str) -> None:
    plain = write_jsonl(tmp_path / "plain.jsonl", [tiny_row(str(i), None, "ö" * (1 + i % 50)) for i in range(3000)])
    path = tmp_path / name
    path.write_bytes(pack(plain.read_bytes(), how))
    index = JsonlIndex([path, plain])
    assert len(index) == 6000 and index.where(2999) == f"{path}:3000"
    assert [index.row(i) for i in (2999, 0, 1234)] == [index.row(3000 + i) for i in (2999, 0, 1234)]
    copy = pickle.loads(pickle.dumps(index))  # as a spawned worker gets it
    assert copy.row(77) == index.row(77)


def test_a_packed_file_named_so_that_is_plain_is_read_as_it_is(tmp_path: Path) -> None:
    assert next(read_rows(write_jsonl(tmp_path / "rows.jsonl.gz", [AQA_LINE]))) == AQA_LINE


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_a_packed_file_that_is_cut_or_flipped_is_named(tmp_path: Path, how: str) -> None:
    data = pack(b"".join(json.dumps(tiny_row(str(i), None)).encode() + b"\n" for i in range(500)), how)
    for size in (5, len(data) // 2, len(data) - 1):
        (tmp_path / "rows.jsonl").write_bytes(data[:size])
        with pytest.raises(ConfigError, match=r"rows\.jsonl is cut or damaged"):
            JsonlIndex(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(data[:40] + bytes([data[40] ^ 255]) + data[41:])
    if how == "gzip":  # zstd writes no checksum unless it is asked to
        with pytest.raises(ConfigError, match=r"rows\.jsonl is cut or damaged"):
            JsonlIndex(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MAX_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(pack(bytes(64 << 20), how))
    with pytest.raises(ConfigError, match=r"rows.jsonl.gz unpacks to more than [0-9,]+ bytes"):
        JsonlIndex(path)


def test_zstd_without_its_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(pack(b"{}", "zstd"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match="pip install zstandard"):
        JsonlIndex(path)


def test_packed_files_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spool"))
    (tmp_path / "spool").mkdir()
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(pack(json.dumps(AQA_LINE).encode(), "gzip"))
    index = JsonlIndex(path)
    assert index.row(0) == AQA_LINE and list((tmp_path / "spool").iterdir()) == []
