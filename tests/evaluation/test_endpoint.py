"""A model behind a real server answers rows as it does at home; a kill loses nothing, a refused row is named."""

import json

import numpy as np
import pytest
import soundfile

from nemo_desta.evaluation.endpoint import answer_rows_at
from nemo_desta.evaluation.settings import EndpointSettings
from tests.serving.serving_tools import NAME, served, tiny_model

pytestmark = pytest.mark.slow  # a server in the process

SAMPLING = {"temperature": 0.0, "max_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model):
    with served(model) as running:
        yield running


@pytest.fixture
def rows(tmp_path):
    made = []
    for i in range(4):
        clip = tmp_path / f"{i}.wav"
        soundfile.write(clip, 0.1 * np.random.default_rng(i).standard_normal(8000 * (i + 1)), 16_000)
        content = f"<|AUDIO|>\nWhat is number {i}?"
        made.append(
            {"id": str(i), "messages": [{"role": "user", "content": content, "audios": [{"audio": str(clip)}]}]}
        )
    made.append({"id": "text", "messages": [{"role": "user", "content": "Say hello."}]})
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(server, rows, output, **more):
    settings = {"tag": "<|AUDIO|>", "sampling": SAMPLING, "progress": False, **more}
    return answer_rows_at(EndpointSettings(server.url, NAME), rows, output, **settings)


def read(path):
    return {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_answers_are_the_models_own_and_a_second_run_asks_nothing(server, model, rows, tmp_path):
    output = tmp_path / "answers.jsonl"
    file = write(tmp_path / "rows.jsonl", rows)
    assert ask(server, write(tmp_path / "half.jsonl", rows[:2]), output) == {"answered": 2, "before": 0, "failed": 0}
    assert ask(server, file, output) == {"answered": 3, "before": 2, "failed": 0}
    answers = read(output)
    for row in rows:
        said = model.chat(row["messages"], max_new_tokens=6, temperature=0.0)
        assert answers[row["id"]]["answer"] == said
        assert answers[row["id"]]["num_new_tokens"] == said.num_new_tokens
    assert ask(server, file, output) == {"answered": 0, "before": 5, "failed": 0}


def test_a_row_that_the_server_refuses_is_named_and_the_others_are_answered(server, rows, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    rows[1]["messages"][0]["audios"][0]["audio"] = str(tmp_path / "broken.wav")
    output = tmp_path / "answers.jsonl"
    assert ask(server, write(tmp_path / "rows.jsonl", rows), output) == {"answered": 4, "before": 0, "failed": 1}
    (rejected,) = map(json.loads, (tmp_path / "answers.rejected.jsonl").read_text().splitlines())
    assert rejected["id"] == "1" and "400" in rejected["detail"]
