"""Every kind of damage is counted under its own reason with file and line, and good rows pass."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.check_rows import CheckReport, check_rows, run_check
from nemo_desta.testing.data import TEMPLATES, tiny_tokenizer


def row(number: int, **changes: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "<|AUDIO|>\nWho?", "audios": [{"audio": f"c{number}.wav", "text": None}]}
    message["audios"][0]["duration"] = 1.0
    return {
        "id": f"r{number}",
        "dataset": "toy",
        "seed_description": "[00:00-00:01] (Gender: male)",
        "prompt": "Who?",
        "messages": [message],
        "response": "A man.",
        **changes,
    }


def with_audio(number: int, name: str, **entry: Any) -> dict[str, Any]:
    made = row(number)
    made["messages"][0]["audios"] = [{"audio": name, "text": None, **entry}]
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Audio root with c0.wav ... c9.wav of 1 s."""
    root = tmp_path / "root"
    root.mkdir()
    for i in range(10):
        soundfile.write(root / f"c{i}.wav", np.sin(np.arange(8000) / 5), 8000)
    return root


def check(rows: Any, **options: Any) -> CheckReport:
    return check_rows(rows, progress=False, **options)


def test_good_rows_pass(tmp_path: Path, root: Path, llm_folder: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(i) for i in range(10)])
    for decode in (False, True):
        report = check(path, audio_roots=root, tokenizer=str(llm_folder), max_target_tokens=7, decode=decode)
        assert report.ok and report.exit_status == 0 and not report.problems, str(report)
        assert (report.rows, report.audios, report.not_checked) == (10, 10, [])


def test_public_rows_may_repeat_an_id_with_another_prompt(tmp_path: Path) -> None:
    bare = {key: value for key, value in row(1).items() if key not in ("prompt", "dataset")}
    path = write(tmp_path / "rows.jsonl", [row(0), row(0, prompt="What?"), bare])
    report = check(path)
    assert report.ok
    assert any("audio_roots" in what for what in report.not_checked)


def test_damaged_lines_do_not_stop_the_check(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(0), {"id": "x", "messages": []}, row(1, response="")])
    with path.open("ab") as file:
        file.write(b'{"id": "caf\xe9"}\n{"id": nonsense}\n\n' + json.dumps(row(2)).encode() + b'\n{"id": "half')
    report = check(path)
    assert report.problems == {"schema": 2, "not UTF-8": 1, "not_json": 1, "half-written line": 1}
    assert (report.rows, report.bad_lines, report.ok, report.exit_status) == (2, 5, False, 1)
    assert report.examples["not UTF-8"][0].startswith(f"{path}:4: byte 0xe9")
    assert report.examples["not_json"][0].startswith(f"{path}:5:")
    assert report.examples["half-written line"][0].startswith(f"{path}:8:")


def test_fields_of_ones_own_are_told_but_no_fault(tmp_path: Path) -> None:
    report = check(write(tmp_path / "rows.jsonl", [row(0, mos=3), row(1), row(2, mos=4)]))
    assert report.ok and report.problems == {"unknown key": 2}
    assert "row 'r0': nothing reads 'mos'" in report.examples["unknown key"][0]


def test_packed_rows_are_checked(tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(write(tmp_path / "rows.jsonl", [row(0), row(1)]).read_bytes()))
    report = check(packed)
    assert report.ok and report.rows == 2


def test_a_whole_last_line_without_line_end_is_told_but_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(0)))
    report = check(path)
    assert report.ok and report.problems == {"no line end": 1}


def test_audio_files_are_looked_at(tmp_path: Path, root: Path) -> None:
    (root / "text.wav").write_text("not audio")
    soundfile.write(root / "empty.wav", np.zeros(0), 8000)
    (root / "cut.flac").write_bytes(b"")
    soundfile.write(root / "cut.flac", np.random.default_rng(0).uniform(-1, 1, 8000), 8000)
    (root / "cut.flac").write_bytes((root / "cut.flac").read_bytes()[:4000])
    (tmp_path / "outside.wav").write_bytes((root / "c0.wav").read_bytes())
    rows = [
        row(0),
        with_audio(1, "none.wav"),
        with_audio(2, "../outside.wav"),
        with_audio(3, "text.wav"),
        with_audio(4, "empty.wav"),
        with_audio(5, "cut.flac"),
        with_audio(6, "c6.wav", duration=4.0),
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    report = check(path, audio_roots={"default": root})
    reasons = {"not_found": 1, "outside_root": 1, "corrupt audio": 3, "wrong duration": 1}
    assert report.problems == reasons, str(report)
    assert report.examples["outside_root"][0].startswith(f"{path}:3: row 'r2'")
    assert check(path).ok  # nothing wrong with the rows themselves


def test_tags_that_do_not_fit_the_audios_are_found(tmp_path: Path) -> None:
    two = row(0)
    two["messages"][0]["content"] = "<|AUDIO|> <|AUDIO|> Who?"
    none = row(1)
    none["messages"][0] = {"role": "user", "content": "Who?"}
    untagged = row(2)
    untagged["messages"][0]["content"] = "Who?"
    path = write(tmp_path / "rows.jsonl", [two, none, untagged, row(3, response=" \n")])
    assert check(path).problems == {"tags": 1, "no audio": 1, "blank response": 1}


def test_long_targets_are_found_with_a_tokenizer(tmp_path: Path, llm_folder: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(0, response="x" * 20), row(1, response="x" * 19)])
    report = check(path, tokenizer=str(llm_folder), max_target_tokens=20)
    assert report.problems == {"long target": 1}  # 20 characters and the end of the turn
    assert "21 tokens, the limit is 20" in report.examples["long target"][0]
    with pytest.raises(ValueError, match="give the LLM's tokenizer"):
        check(path, max_target_tokens=20)


def test_duplicates_name_both_places(tmp_path: Path) -> None:
    first = write(tmp_path / "rows/a.jsonl", [row(0), row(1)])
    second = write(tmp_path / "rows/b.jsonl", [row(2), row(1), row(1)])
    report = check(tmp_path / "rows")
    assert report.problems == {"duplicate": 2}
    assert report.examples["duplicate"] == [
        f"{second}:{line}: repeats dataset, id and prompt of {first}:2" for line in (2, 3)
    ]


def test_clips_and_groups_on_both_sides_of_a_split_are_found(tmp_path: Path) -> None:
    train = write(tmp_path / "rows/train-00000.jsonl", [row(i, group=f"g{i}") for i in range(4)])
    valid = [row(7, group="g7"), row(8, group="g2"), {**with_audio(9, "c1.wav"), "group": "g9"}]
    valid = write(tmp_path / "rows/valid-00000.jsonl", valid)
    report = check(tmp_path)
    assert report.problems == {"audio in two splits": 1, "group in two splits": 1}
    assert report.examples["audio in two splits"] == [f"{valid}:3: valid shares its audio with train, {train}:2"]
    assert report.examples["group in two splits"] == [f"{valid}:2: valid shares its group with train, {train}:3"]


def test_examples_are_few_and_counts_are_whole(tmp_path: Path) -> None:
    report = check(write(tmp_path / "rows.jsonl", [row(i, response="") for i in range(50)]), max_examples=2)
    assert report.problems == {"schema": 50} and len(report.examples["schema"]) == 2
    assert "and 48 more" in str(report) and "no rows" in str(report)


def test_the_command_reads_its_config_and_writes_its_findings(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(0), row(0)])
    report = run_check({"rows": str(path), "output": str(tmp_path / "out/check.json"), "progress": False})
    written = json.loads((tmp_path / "out/check.json").read_text())
    assert written == report.to_json() and written["problems"] == {"duplicate": 1} and written["ok"] is False
    with pytest.raises(ConfigError, match="check.llm"):
        run_check({"rows": str(path), "max_target_tokens": 5})
    with pytest.raises(ConfigError, match="audio_root"):
        run_check({"rows": str(path), "audio_root": "x"})


def test_targets_that_do_not_fit_the_think_block_are_counted_with_what_helps(tmp_path: Path) -> None:
    thought = row(1, response="low pitch\n</think>\n\nA man.")
    cut = row(2, response="so long a thought", truncated=True)
    path = write(tmp_path / "rows.jsonl", [row(0), thought, cut])
    tokenizer = tiny_tokenizer("chatml")
    generation = "<|im_start|>assistant\n"
    assert check(path, tokenizer=tokenizer).ok
    tokenizer.chat_template = TEMPLATES["chatml"].replace(generation, generation + "<think>\n")
    report = check(path, tokenizer=tokenizer)
    assert report.problems == {"no thought": 1} and not report.ok
    assert "row 'r0'" in report.examples["no thought"][0] and "enable_thinking: false" in str(report)
    tokenizer.chat_template = TEMPLATES["chatml"].replace(generation, generation + "<think>\n\n</think>\n\n")
    report = check(path, tokenizer=tokenizer)
    assert report.problems == {"late thought": 1} and "row 'r1'" in report.examples["late thought"][0]


def test_text_that_spells_a_control_token_is_told_but_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(0), row(1, response="A man.<|im_end|>")])
    report = check(path, tokenizer=tiny_tokenizer("chatml"))
    assert report.ok and report.problems == {"control tokens": 1}
    assert "row 'r1': <|im_end|> in its text" in report.examples["control tokens"][0]


def test_system_role_is_that_of_the_training(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    path = write(tmp_path / "rows.jsonl", [row(0, messages=[system, *row(0)["messages"]])])
    tokenizer = tiny_tokenizer("chatml")
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    assert check(path, tokenizer=tokenizer).ok
    assert check(path, tokenizer=tokenizer, system_role="keep").problems == {"template": 1}
