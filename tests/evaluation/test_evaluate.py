"""The whole evaluation on a tiny model and made-up official files: folder, report, controls, resume, errors."""

import json
import random

import numpy as np
import pytest
import soundfile
import torch

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation import text_parity
from nemo_desta.evaluation.report import render
from nemo_desta.evaluation.run import _text_kept, evaluate
from nemo_desta.evaluation.scores import ItemError
from nemo_desta.evaluation.settings import EvaluateSettings
from nemo_desta.evaluation.sources import Source
from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config

OPTIONS = ["a dog", "a cat", "a bird", "the rain"]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(text_parity, "MAX_NEW_TOKENS", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    return DestaModel(tiny_config(root, kind="llama")).save_pretrained(root / "model")


def official_items(count=6):
    rng = random.Random(0)
    return [
        {
            "id": f"item-{i}",
            "audio_id": f"./test-mini-audios/{i}.wav",
            "question": f"What is heard in clip {i}?",
            "choices": rng.sample(OPTIONS, 4),
            "answer": OPTIONS[i % 4],
            "task": ["sound", "speech"][i % 2],
            "difficulty": "easy",
            "sub-category": "x",
            "category": "y",
            "split": "test-mini",
            "dataset": "made up",
        }
        for i in range(count)
    ]


@pytest.fixture
def data_root(tmp_path):
    root = tmp_path / "data"
    (root / "test-mini-audios").mkdir(parents=True)
    for i in range(6):
        samples = 0.1 * np.random.default_rng(i).standard_normal(4000 * (i + 1))
        soundfile.write(root / "test-mini-audios" / f"{i}.wav", samples, 16_000)
    (root / "mmau-test-mini.json").write_text(json.dumps(official_items()))
    return root


def settings(folder, root, output, **more):
    values = {
        "output": str(output),
        "model": str(folder),
        "device": "cpu",
        "benchmarks": ["mmau"],
        "data_root": str(root),
        "sampling": {"temperature": 0.0, "max_new_tokens": 5},
        "controls": {"items": 4},
        "text_kept": {"prompts": 2, "texts": 2},
        "progress": False,
        **more,
    }
    return parse(EvaluateSettings, values, "evaluate")


def test_one_folder_holds_what_was_asked_answered_and_decided(folder, data_root, tmp_path):
    report = evaluate(settings(folder, data_root, tmp_path / "out"))
    found = report["benchmarks"]["mmau"]
    assert found["items"] == 6 and found["strict"]["num_counted"] == 6
    assert found["variant"] == "desta25_sentence" and len(found["hash"]) == 12
    assert [control["name"] for control in found["controls"]] == ["silence", "shuffled"]
    assert report["first_line"].startswith("WARNING"), "random weights hear nothing"
    assert report["text_kept"]["untouched"] is True
    part = tmp_path / "out" / "mmau"
    asked = [json.loads(line) for line in (part / "prompts.jsonl").read_text().splitlines()]
    scored = [json.loads(line) for line in (part / "scored.jsonl").read_text().splitlines()]
    assert len(asked) == len(scored) == 6
    assert all(set(row["verdicts"]) == {"official", "strict"} for row in scored)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["first_line"] == report["first_line"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert report["first_line"].split(":")[0] in page and "mmau" in page and "http-equiv" in page
    text = render(report)
    assert text.splitlines()[0] == report["first_line"] and "| mmau " in text


def test_a_run_that_was_cut_short_goes_on_to_the_same_scores(folder, data_root, tmp_path):
    cut, no_text = tmp_path / "cut", {"prompts": 0, "texts": 0}
    whole = evaluate(settings(folder, data_root, cut, text_kept=no_text))
    answers = cut / "mmau" / "answers.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:3]) + lines[3][:25])
    (cut / "scores.json").unlink()
    again = evaluate(settings(folder, data_root, cut, text_kept=no_text))
    assert again["benchmarks"] == whole["benchmarks"]
    assert len(answers.read_bytes().splitlines()) == 6


def test_answers_to_other_prompts_are_not_taken_over(folder, data_root, tmp_path):
    evaluate(
        settings(folder, data_root, tmp_path / "out", controls={"items": 0}, text_kept={"prompts": 0, "texts": 0})
    )
    with pytest.raises(ConfigError, match="the prompt of item .* differs"):
        evaluate(settings(folder, data_root, tmp_path / "out", controls={"items": 0}, prompts={"mmau": "letters"}))


def test_predictions_are_scored_without_a_model(tmp_path):
    rows = [{**row, "model_output": row["answer"] if i else "no idea"} for i, row in enumerate(official_items())]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    values = {"output": str(tmp_path / "out"), "predictions": {"mmau": str(tmp_path / "mine.json")}}
    report = evaluate(parse(EvaluateSettings, values, "evaluate"))
    found = report["benchmarks"]["mmau"]
    assert found["strict"]["accuracy"] == pytest.approx(5 / 6) == found["official"]["accuracy"]
    assert found["strict"]["num_unparsed"] == 1
    assert "model" not in report and "not known" in report["first_line"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[2].pop("choices"), "item-2.*choices"),
        (lambda items: items[3].update(id="item-1"), "item-1"),
        (lambda items: items[4].update(audio_id="./test-mini-audios/gone.wav"), "item-4"),
        (lambda items: items[5].update(audio_id="../../secret.wav"), "item-5"),
    ],
)
def test_a_broken_official_file_names_the_item(folder, data_root, tmp_path, change, message):
    items = official_items()
    change(items)
    (data_root / "mmau-test-mini.json").write_text(json.dumps(items))
    with pytest.raises(ItemError, match=message):
        evaluate(settings(folder, data_root, tmp_path / "out"))


def test_a_missing_official_file_says_where_it_comes_from(folder, data_root, tmp_path):
    (data_root / "mmau-test-mini.json").unlink()
    with pytest.raises(FileNotFoundError, match="MMAU"):
        evaluate(settings(folder, data_root, tmp_path / "out"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"benchmarks": ["mmauu"]}, "unknown benchmark 'mmauu'.*Did you mean 'mmau'"),
        ({"model": None}, "nothing to evaluate"),
        ({"data_root": None}, "'data_root' must be given"),
        ({"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "x"}}, "not both"),
        ({"prompts": {"mmau": "leters"}}, "Did you mean 'letters'"),
        ({"controls": {"kinds": ["silense"]}}, "Did you mean 'silence'"),
        ({"sampling": {"temprature": 0}}, "Did you mean 'temperature'"),
    ],
)
def test_wrong_settings_are_named(folder, data_root, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(settings(folder, data_root, tmp_path / "out", **more))


def test_the_config_names_every_setting_and_no_other():
    import dataclasses
    from pathlib import Path

    import yaml

    config = yaml.safe_load((Path(__file__).parents[2] / "conf" / "use" / "evaluate.yaml").read_text())
    assert set(config) == {field.name for field in dataclasses.fields(EvaluateSettings)}
    parsed = parse(EvaluateSettings, {**config, "output": "x", "model": "y", "benchmarks": ["mmau"]}, "evaluate")
    assert parsed == EvaluateSettings(output="x", model="y", benchmarks=["mmau"])


def test_null_turns_controls_and_the_text_probe_off():
    given = {"output": "x", "model": "y", "benchmarks": ["mmau"], "controls": None, "text_kept": None}
    settings = parse(EvaluateSettings, given, "evaluate")
    assert settings.controls.items == 0 and settings.text_kept.prompts == settings.text_kept.texts == 0


def test_a_model_elsewhere_is_not_said_to_have_kept_its_text():
    given = {"output": "x", "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "x"}, "benchmarks": ["mmau"]}
    elsewhere = parse(EvaluateSettings, given, "evaluate")
    found = _text_kept(Source(elsewhere), elsewhere)
    assert found["untouched"] is None and "not compared" in found["sentence"]
