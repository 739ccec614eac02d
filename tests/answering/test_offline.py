"""A file of rows: the right answers in any order, rows that cannot be answered, and going on after a kill."""

import gzip
import json
from datetime import datetime

import pytest
import soundfile
import torch

from nemo_desta.answering import offline
from nemo_desta.answering.engine import ChatEngine
from nemo_desta.answering.offline import answer_rows
from nemo_desta.data.bad_rows import TooManyBadRows
from nemo_desta.errors import ConfigError
from tests.serving.serving_tools import noise, tiny_model

GREEDY = {"max_new_tokens": 8, "temperature": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i, secs in enumerate((0.3, 2.5, 0.9, 1.4)):
        soundfile.write(folder / f"{i}.wav", noise(secs, seed=i), 16_000)
    return folder


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def short_rows(count):
    return [{"id": f"r{i}", "audio": f"{i % 4}.wav", "prompt": f"Question {i * 7}?"} for i in range(count)]


def answer(model, rows, output, clips, **options):
    options = {"name": "tiny", "audio_roots": clips, "sampling": GREEDY, "progress": False, **options}
    return answer_rows(model, rows, output, **options)


def test_answers_equal_those_of_each_row_alone(model, clips, tmp_path):
    rows = short_rows(11)
    summary = answer(model, write(tmp_path / "rows.jsonl", rows), tmp_path / "a.jsonl", clips, max_batch_size=4)
    found = {row["id"]: row for row in read(tmp_path / "a.jsonl")}
    assert summary.ok and summary.answered == len(found) == len(rows)
    for row in rows:
        message = {"role": "user", "content": f"<|AUDIO|>\n{row['prompt']}", "audios": [clips / row["audio"]]}
        alone = model.chat([message], **GREEDY)
        assert found[row["id"]]["answer"] == alone
        assert found[row["id"]]["finish"] == alone.finish
        assert found[row["id"]]["num_prompt_tokens"] == alone.num_prompt_tokens
        assert found[row["id"]]["num_new_tokens"] == alone.num_new_tokens
    assert found["r1"]["audio_secs"] == 2.5
    settings = found["r0"]["settings"]
    assert settings["model"] == "tiny" and settings["max_new_tokens"] == 8 and settings["temperature"] == 0.0
    assert not (tmp_path / "a.rejected.jsonl").exists()


def test_a_template_with_a_date_writes_that_of_the_first_run(model, clips, tmp_path, monkeypatch):
    template = "Today: {{ strftime_now('%d %b %Y') }}\n" + model.tokenizer.get_chat_template()
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    rendered = []
    render = model.prompts.render
    monkeypatch.setattr(
        model.prompts, "render", lambda *args, **more: rendered.append(render(*args, **more)) or rendered[-1]
    )
    output, rows = tmp_path / "a.jsonl", short_rows(2)
    answer(model, write(tmp_path / "rows.jsonl", rows[:1]), output, clips)
    assert all(text.startswith(f"Today: {datetime.now():%d %b %Y}") for text in rendered)
    (record,) = read(output)
    record["settings"]["template_date"] = "2020-02-01T23:59:00"  # as if it had begun then
    write(output, [record])
    del rendered[:]
    answer(model, write(tmp_path / "rows.jsonl", rows), output, clips)
    assert rendered and all(text.startswith("Today: 01 Feb 2020") for text in rendered)
    assert [row["settings"] for row in read(output)] == [record["settings"]] * 2
    assert model.prompts.date is None, "a chat's is today's"


def test_training_rows_and_their_short_forms_mean_the_same(model, clips, tmp_path):
    long = {
        "id": "long",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": "<|AUDIO|>\n<|AUDIO|>\nCompare.",
                "audios": [{"audio": "0.wav", "text": None, "duration": 0.3}, {"audio": "1.wav", "text": None}],
            },
        ],
        "response": "not read",
        "seed_description": "x",
    }
    short = {"id": "short", "system": "Be brief.", "audio": ["0.wav", "1.wav"], "prompt": "Compare."}
    tagged = {"id": "tagged", "audio": ["0.wav", "1.wav"], "prompt": "<|AUDIO|>\n<|AUDIO|>\nCompare."}
    rows = write(tmp_path / "rows.jsonl", [long, short, tagged])
    answer(model, rows, tmp_path / "a.jsonl", clips, system="Be brief.")
    answers = [row["answer"] for row in read(tmp_path / "a.jsonl")]
    assert len(answers) == 3 and len(set(answers)) == 1


def test_rows_that_cannot_be_answered_are_named_and_the_others_answered(model, clips, tmp_path):
    (clips / "broken.wav").write_bytes(b"RIFF....WAVE nonsense")
    bad = [
        {"id": "outside", "audio": "../../etc/passwd", "prompt": "x"},
        {"id": "missing", "audio": "no.wav", "prompt": "x"},
        {"id": "broken", "audio": "broken.wav", "prompt": "x"},
        {"audio": "0.wav", "prompt": "x"},
        {"id": "no-prompt", "audio": "0.wav"},
        {"id": "tags", "audio": "0.wav", "prompt": "<|AUDIO|><|AUDIO|>"},
        {"id": "long", "prompt": "word " * 3000},
        {"id": "ends", "messages": [{"role": "assistant", "content": "I am done."}]},
        "[1, 2]\n",
        "{torn\n",
    ]
    rows = write(tmp_path / "rows.jsonl", [*short_rows(3), *bad])
    summary = answer(model, rows, tmp_path / "a.jsonl", clips)
    assert summary.answered == 3 and not summary.ok
    rejected = {(row["id"] or row["where"].rpartition(":")[2]): row["reason"] for row in read(summary.rejects)}
    assert rejected == {
        **{"outside": "outside_root", "missing": "not_found", "broken": "corrupt", "7": "schema"},
        **{"no-prompt": "schema", "tags": "tags", "long": "too_long", "ends": "schema", "12": "schema"},
        "13": "not_json",
    }
    assert "10 (" in str(summary) and str(summary.rejects) in str(summary)

    write(rows, [*short_rows(3), {"id": "missing", "audio": "3.wav", "prompt": "x"}])  # mended
    summary = answer(model, rows, tmp_path / "a.jsonl", clips)
    assert (summary.before, summary.answered, summary.ok) == (3, 1, True) and not summary.rejects.exists()


def test_an_id_that_repeats_gets_a_number(model, clips, tmp_path):
    rows = [{"id": "x", "audio": f"{i}.wav", "prompt": "What?"} for i in range(3)]
    answer(model, write(tmp_path / "rows.jsonl", rows), tmp_path / "a.jsonl", clips)
    answers = {row["id"]: row["answer"] for row in read(tmp_path / "a.jsonl")}
    assert answers.keys() == {"x", "x#2", "x#3"} and len(set(answers.values())) > 1


def test_a_run_goes_on_behind_what_is_there_and_mends_a_torn_line(model, clips, tmp_path):
    rows = write(tmp_path / "rows.jsonl", short_rows(8))
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    answer(model, rows, whole, clips)
    lines = whole.read_bytes().splitlines(keepends=True)
    parts.write_bytes(b"".join(lines[:3]) + lines[3][:25])
    summary = answer(model, rows, parts, clips)
    assert (summary.before, summary.answered) == (3, 5)
    assert sorted(read(parts), key=lambda row: row["id"]) == sorted(read(whole), key=lambda row: row["id"])
    again = answer(model, rows, parts, clips)
    assert (again.before, again.answered) == (8, 0)


def test_answers_of_other_settings_are_not_mixed(model, clips, tmp_path):
    rows = write(tmp_path / "rows.jsonl", short_rows(2))
    answer(model, rows, tmp_path / "a.jsonl", clips)
    with pytest.raises(ConfigError, match=r"temperature \(there: 0.0, now: 0.5\)"):
        answer(model, rows, tmp_path / "a.jsonl", clips, sampling={**GREEDY, "temperature": 0.5})
    with pytest.raises(ConfigError, match="model .*'tiny'.*'other'"):
        answer(model, rows, tmp_path / "a.jsonl", clips, name="other")
    with pytest.raises(ConfigError, match="rows.jsonl:1 is no answer"):
        answer(model, rows, rows, clips)


def test_like_lengths_are_answered_together_and_never_more_than_the_limit(model, clips, tmp_path, monkeypatch):
    groups = []
    real = ChatEngine.add

    def add(self, chats):
        groups.append([chat.num_prompt_tokens for chat in chats])
        return real(self, chats)

    monkeypatch.setattr(ChatEngine, "add", add)
    rows = write(tmp_path / "rows.jsonl", short_rows(16))
    answer(model, rows, tmp_path / "a.jsonl", clips, max_batch_size=4)
    together = [length for group in groups for length in group]
    # The order is by a guess of text tokens from characters: a few tokens off.
    assert len(together) == 16 and all(a >= b - 4 for a, b in zip(together, together[1:], strict=False))

    groups.clear()
    longest = max(together) + GREEDY["max_new_tokens"]
    answer(model, rows, tmp_path / "b.jsonl", clips, max_batch_size=16, max_batch_tokens=2 * longest)
    assert len(groups[0]) <= 2 and sum(map(len, groups)) == 16


def test_another_engine_may_write(model, clips, tmp_path):
    rows = write(tmp_path / "rows.jsonl", short_rows(5))
    engine = ChatEngine(model, max_batch_size=2)
    answer(model, rows, tmp_path / "a.jsonl", clips, engine=engine, max_batch_size=4)
    answer(model, rows, tmp_path / "b.jsonl", clips)
    assert sorted((r["id"], r["answer"]) for r in read(tmp_path / "a.jsonl")) == sorted(
        (r["id"], r["answer"]) for r in read(tmp_path / "b.jsonl")
    )
    assert engine.num_active == 0


def test_two_processes_do_not_write_one_file(model, clips, tmp_path):
    from nemo_desta.answering.answer_file import AnswerFile

    rows = write(tmp_path / "rows.jsonl", short_rows(2))
    held = AnswerFile(tmp_path / "a.jsonl", {})
    with pytest.raises(ConfigError, match="another process writes"):
        answer(model, rows, tmp_path / "a.jsonl", clips)
    held.close()


def rejected(summary):
    """Reason by id, or by line where the row has no id."""
    if not summary.rejects.exists():
        return {}
    return {row["id"] or row["where"].rpartition(":")[2]: row["reason"] for row in read(summary.rejects)}


def test_poison_rows_are_named_and_never_answered_twice(model, clips, tmp_path):
    poison = [
        '{"id": "\\ud83d", "audio": "0.wav", "prompt": "x"}\n',
        '{"id": "half", "audio": "0.wav", "prompt": "\\ud83d"}\n',
        {"id": "system", "audio": "0.wav", "prompt": "x", "system": 5},
        {"id": "root", "audio": "/", "prompt": "x"},
        {"id": "text", "audio": "0.wav", "prompt": "x", "text": 5},
        {"id": True, "audio": "0.wav", "prompt": "x"},
        {"id": "dataset", "audio": "0.wav", "prompt": "x", "dataset": ["a"]},
        {"id": "lists", "audio": [["0.wav"]], "prompt": "x"},
        '{"id": "deep", "audio": ' + "[" * 100_000 + "\n",
        '{"id": ' + "9" * 5000 + "}\n",
        {"id": "said", "messages": [{"role": "human", "content": "x"}]},
    ]
    rows = write(tmp_path / "rows.jsonl", [*short_rows(2), {"id": 7, "prompt": "x"}, *poison])
    first = answer(model, rows, tmp_path / "a.jsonl", clips)
    assert first.answered == 3 and first.rejected.total() == len(poison)
    named = rejected(first)
    assert named.keys() == {"4", "5", "system", "root", "text", "9", "dataset", "lists", "12", "13", "said"}
    assert named["4"] == named["5"] == named["12"] == named["13"] == "not_json"
    assert {named[name] for name in ("system", "text", "9", "dataset", "lists", "said")} == {"schema"}
    lines = len(read(tmp_path / "a.jsonl"))
    again = answer(model, rows, tmp_path / "a.jsonl", clips)
    assert again.answered == 0 and again.before == lines == len(read(tmp_path / "a.jsonl"))
    assert {row["id"] for row in read(tmp_path / "a.jsonl")} == {"r0", "r1", "7"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "x", "audios": ["0.wav"]},
        {"prompt": "x", "Audio": "0.wav"},
        {"prompt": "x", "path": "0.wav"},
        {"prompt": "x", "recording_of_the_talk": "0.wav"},
        {"prompt": "x", "audio": "0.wav", "transcript": "hello"},
        {"messages": [{"role": "user", "content": "x"}], "audio": "0.wav"},
        {"messages": [{"role": "user", "content": "x", "audio": "0.wav"}]},
        {"messages": [{"role": "user", "content": "x", "audios": [{"audio": "0.wav", "offset": 1.0}]}]},
    ],
)
def test_a_row_whose_audio_would_not_be_heard_is_not_answered(model, clips, tmp_path, row):
    summary = answer(model, write(tmp_path / "rows.jsonl", [{"id": "x", **row}]), tmp_path / "a.jsonl", clips)
    assert summary.answered == 0 and rejected(summary) == {"x": "unknown_key"}


def test_fields_of_ones_own_are_counted_refused_or_kept(model, clips, tmp_path):
    message = {"role": "user", "content": "x"}
    rows = [
        {"id": "full", "messages": [message], "mos": 3, "answer": "gold"},
        {"id": "short", "audio": "0.wav", "prompt": "x", "mos": 3},
        {"id": "text", "audio": None, "prompt": "x", "mos": 3},
    ]
    rows = write(tmp_path / "rows.jsonl", rows)
    summary = answer(model, rows, tmp_path / "a.jsonl", clips)
    assert summary.ok and summary.answered == 3
    assert "unknown keys, not read" in str(summary) and "'mos' in 2 rows" in str(summary)
    strict = answer(model, rows, tmp_path / "b.jsonl", clips, strict_keys=True)
    assert strict.answered == 0 and set(rejected(strict).values()) == {"unknown_key"}
    kept = answer(model, rows, tmp_path / "c.jsonl", clips, strict_keys=False)
    assert kept.answered == 3 and not kept.unknown_keys


class Failing(ChatEngine):
    """Fails on a clip of 0.9 s (number 2), or beside others, as a GPU does on what is too much for it."""

    def __init__(self, model, where, error, **options):
        super().__init__(model, **options)
        self.where, self.error, self.bad = where, error, set()

    def add(self, chats):
        is_bad = [any(len(clip.audio) == 14_400 for clip in chat.clips) for chat in chats]
        if self.where == "add" and any(is_bad):
            raise self.error
        ids = super().add(chats)
        self.bad |= {chat_id for chat_id, bad in zip(ids, is_bad, strict=True) if bad}
        return ids

    def step(self):
        if self.where == "step" and self.bad & {chat_id for chat_id, _ in self._parsers.values()}:
            raise self.error
        return super().step()


@pytest.mark.parametrize("where", ["add", "step"])
@pytest.mark.parametrize(
    ("error", "reason"), [(RuntimeError("odd"), "unexpected"), (torch.OutOfMemoryError("full"), "out_of_memory")]
)
def test_a_row_that_the_model_cannot_take_is_the_only_one_without_an_answer(
    model, clips, tmp_path, where, error, reason
):
    rows = write(tmp_path / "rows.jsonl", short_rows(7))
    answer(model, rows, tmp_path / "whole.jsonl", clips)
    engine = Failing(model, where, error, max_batch_size=4)
    summary = answer(model, rows, tmp_path / "a.jsonl", clips, engine=engine)
    assert rejected(summary) == {"r2": reason, "r6": reason}
    expected = {row["id"]: row["answer"] for row in read(tmp_path / "whole.jsonl")}
    assert {row["id"]: row["answer"] for row in read(tmp_path / "a.jsonl")} == {
        name: text for name, text in expected.items() if name not in ("r2", "r6")
    }
    assert engine.num_active == 0


def test_a_row_without_memory_beside_others_is_answered_alone(model, clips, tmp_path):
    class Small(ChatEngine):
        def add(self, chats):
            if self.num_active + len(chats) > 1:
                raise torch.OutOfMemoryError("full")
            return super().add(chats)

    rows = write(tmp_path / "rows.jsonl", short_rows(6))
    summary = answer(model, rows, tmp_path / "a.jsonl", clips, engine=Small(model, max_batch_size=4))
    assert summary.ok and summary.answered == 6


def test_a_model_that_takes_no_row_ends_the_run(model, clips, tmp_path, monkeypatch):
    class Broken(ChatEngine):
        def add(self, chats):
            raise RuntimeError("device-side assert")

    monkeypatch.setattr(offline, "MAX_FAILURES_IN_A_ROW", 3)
    rows = write(tmp_path / "rows.jsonl", short_rows(6))
    with pytest.raises(TooManyBadRows, match="could not take 3 rows.*device-side assert"):
        answer(model, rows, tmp_path / "a.jsonl", clips, engine=Broken(model))


def test_a_loader_that_fails_rejects_its_row(model, clips, tmp_path, monkeypatch):
    real = offline.prepare

    def prepare(listener, messages, *args, **options):
        if "14" in messages[-1]["content"]:
            raise MemoryError
        return real(listener, messages, *args, **options)

    monkeypatch.setattr(offline, "prepare", prepare)
    summary = answer(model, write(tmp_path / "rows.jsonl", short_rows(4)), tmp_path / "a.jsonl", clips)
    assert summary.answered == 3 and rejected(summary) == {"r2": "unexpected"}


def test_an_unknown_transcript_setting_is_refused_before_any_row(model, clips, tmp_path):
    with pytest.raises(ConfigError, match="unknown transcript 'givn'.*given"):
        answer(model, write(tmp_path / "rows.jsonl", short_rows(1)), tmp_path / "a.jsonl", clips, transcript="givn")


def test_packed_rows_are_answered(model, clips, tmp_path):
    rows = tmp_path / "rows.jsonl.gz"
    rows.write_bytes(gzip.compress(write(tmp_path / "rows.jsonl", short_rows(2)).read_bytes()))
    assert answer(model, rows, tmp_path / "a.jsonl", clips).answered == 2
