"""What a new user meets: wrong paths, misspelt keys, missing parts. One clear message, before anything is loaded."""

import dataclasses
import json

import pytest
from transformers import AutoTokenizer

from nemo_desta.config import ModelConfig, parse
from nemo_desta.testing.models import tiny_llm
from nemo_desta.training.preflight import MissingParts, preflight


def model_of(workplace, **llm):
    parts = workplace.folder / "parts"
    return parse(
        ModelConfig,
        {
            "llm": {"path": str(parts / "llm"), **llm},
            "perception": {
                "encoders": {
                    "whisper": {"name": "whisper", "path": str(parts / "whisper")},
                    "beats": {"name": "beats", "path": str(parts / "beats.pt")},
                }
            },
        },
    )


def data_of(workplace, **more):
    rows = workplace.folder / "rows"
    section = {"input_cfg": [{"type": "desta", "rows": str(rows / "rows.jsonl")}]}
    return {"audio_roots": {"default": str(rows)}, "train_ds": section, **more}


def test_preflight_is_silent_when_everything_is_there(workplace):
    preflight(model_of(workplace), data_of(workplace))


def test_everything_that_is_missing_is_listed_at_once(workplace, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = parse(
        ModelConfig,
        {
            "llm": {"path": "someone/no-such-llm"},
            "perception": {
                "encoders": {
                    "whisper": {"name": "whisper", "path": "./nowhere"},
                    "beats": {"name": "beats", "path": "???"},
                }
            },
        },
    )
    data = {
        "audio_roots": {"default": "???", "other": "no/folder"},
        "train_ds": {"input_cfg": [{"type": "desta", "rows": "no/rows.jsonl"}]},
    }
    with pytest.raises(MissingParts) as caught:
        preflight(model, data)
    message = str(caught.value)
    assert message.startswith("6 things are missing")
    for part in ("someone/no-such-llm", "./nowhere", "encoders.beats.path is not given", "BEATs_iter3_plus_AS2M.pt"):
        assert part in message
    for part in ("no/rows.jsonl", "audio_roots.default is not given", "no folder 'no/folder'"):
        assert part in message


def test_an_llm_folder_without_tokenizer_is_named(workplace, tmp_path):
    folder = tiny_llm(tmp_path / "llm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(MissingParts, match="has no tokenizer \\(tokenizer.json\\)"):
        preflight(model_of(workplace, path=str(folder)), data_of(workplace))


def test_targets_without_a_thought_behind_a_template_that_opens_one_are_counted(workplace, tmp_path, caplog):
    folder = tiny_llm(tmp_path / "llm", template="thinking")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template += "{% if enable_thinking is not defined %}<think>\n{% endif %}"
    tokenizer.save_pretrained(folder)
    preflight(model_of(workplace, path=str(folder)), data_of(workplace))
    assert "no thought in 32 of 32 sampled training rows" in caplog.text and "enable_thinking: false" in caplog.text
    caplog.clear()
    model = model_of(workplace, path=str(folder))
    told = dataclasses.replace(model.prompt, chat_template_kwargs={"enable_thinking": False})
    preflight(dataclasses.replace(model, prompt=told), data_of(workplace))
    assert not caplog.records


@pytest.mark.slow
def test_a_misspelt_key_is_refused_with_the_nearest_one(workplace):
    done = workplace.train("misspelt", "+model.perception.normalise_dbfs=-20")
    assert done.returncode != 0
    assert "unknown key 'model.perception.normalise_dbfs'. Did you mean 'normalize_dbfs'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_check_prints_sizes_and_stops(workplace):
    done = workplace.train("checked", "check=true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trainable parameters" in done.stdout
    assert "audio tokens   6.25 per second" in done.stdout
    assert not (workplace.folder / "checked" / "desta25" / "checkpoints").exists()


@pytest.mark.slow
def test_a_corrupt_wav_and_a_path_out_of_the_root_are_named_and_the_run_goes_on(workplace):
    rows_folder = workplace.folder / "rows"
    rows = [json.loads(line) for line in (rows_folder / "rows.jsonl").read_text().splitlines()]
    (rows_folder / "wavs" / "corrupt.wav").write_bytes(b"RIFF and then nothing")
    for name, audio in (("corrupt", "wavs/corrupt.wav"), ("outside", "/etc/passwd"), ("up", "../../secret.wav")):
        bad = json.loads(json.dumps(rows[0]))
        bad["id"] = name
        bad["messages"][-1]["audios"][0] = {"audio": audio, "text": None}
        rows.append(bad)
    path = rows_folder / "with_bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"data.train_ds.input_cfg.0.rows": path, "trainer.max_steps": 11}
    done = workplace.train("bad_rows", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    record = workplace.folder / "bad_rows" / "desta25" / "records" / "bad_rows.jsonl"
    named = {line["id"]: line["reason"] for line in map(json.loads, record.read_text().splitlines())}
    assert set(named) == {"corrupt", "outside", "up"}
    trained = {row for step in workplace.steps("bad_rows") for row in step["rows"]}
    assert len(trained - {"<filler>"}) == 40
