"""The judge over a real HTTP server: asked once, remembered, counted, in the report with what it cost."""

import json

import pytest

from nemo_desta.evaluation.judge import Judge
from nemo_desta.evaluation.scores import JudgeAsk
from nemo_desta.recipes.engines import OpenAIEngine
from nemo_desta.testing.openai_server import ScriptedServer


def requests(count):
    return [JudgeAsk(i, [{"role": "user", "content": f"Is {i} right?"}]) for i in range(count)]


@pytest.fixture
def server():
    with ScriptedServer(model="judge-1") as running:
        yield running


def judge(server, cache, **settings):
    return Judge(OpenAIEngine(server.url, "judge-1", api="chat", concurrency=4), cache, **settings)


def test_answers_are_kept_and_a_second_report_asks_nothing(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    first = judge(server, cache, prices=(2.0, 10.0))
    texts = first.ask(requests(6), progress=False)
    assert len(set(texts)) == 6 and all(texts)
    about = first.about()
    assert about["model"] == "judge-1" and about["asked"] == 6 and about["from_cache"] == 0
    assert about["cost"] == pytest.approx((2 * about["prompt_tokens"] + 10 * about["new_tokens"]) / 1e6, abs=1e-4)
    again = judge(server, cache)
    assert again.ask(requests(6), progress=False) == texts
    assert again.about()["asked"] == 0 and again.about()["from_cache"] == 6


def test_a_kill_loses_the_answer_under_way_and_no_other(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    texts = judge(server, cache).ask(requests(4), progress=False)
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])
    again = judge(server, cache)
    assert again.ask(requests(4), progress=False) == texts
    assert again.usage["asked"] == 2
    assert judge(server, cache).ask(requests(4), progress=False) == texts
    records = [json.loads(line) for line in cache.read_text().splitlines() if line.endswith("}")]
    assert len({record["key"] for record in records}) == 4


def test_draws_of_one_question_are_asked_apart(server, tmp_path):
    asked = requests(1)[0]
    drawn = judge(server, tmp_path / "judge.jsonl")
    drawn.ask([asked._replace(turn=turn, temperature=0.5) for turn in range(3)], progress=False)
    assert drawn.usage["asked"] == 3
