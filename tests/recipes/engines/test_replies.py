"""Odd answers of a server: each is the fault of its one request, and no count of tokens is worth an answer."""

import json
from typing import Any

import pytest

from nemo_desta.evaluation.endpoint import answer_rows_at
from nemo_desta.evaluation.settings import EndpointSettings
from nemo_desta.recipes.engines import Generation, OpenAIEngine, Request, SamplingConfig, generate_all
from nemo_desta.recipes.engines.http_client import _message, _retry_after_secs
from nemo_desta.recipes.engines.replies import MalformedAnswer, read_chat, read_completion, read_models, read_object
from nemo_desta.testing.openai_server import Call, Reply, ScriptedServer

DEEP = b"[" * 200_000
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}, "text": "fine"}


def body(**changes: Any) -> bytes:
    return json.dumps({"choices": [CHOICE], **changes}).encode()


def choice(**changes: Any) -> bytes:
    return body(choices=[{**CHOICE, **changes}])


def answers_to(odd: bytes, **options: Any) -> list[Generation]:
    """What three rows get from a server that answers the second one with ``odd``."""
    script = lambda prompt: Reply(body=odd) if "row 1" in prompt else "right"  # noqa: E731
    with ScriptedServer(script) as server:
        quick = {"first_wait_secs": 0.001, "longest_wait_secs": 0.01, "max_retries": 2, "api": "chat"}
        engine = OpenAIEngine(server.url, server.model, **{**quick, **options})
        asked = [Request([{"role": "user", "content": f"row {i}"}], SamplingConfig(9), seed=i) for i in range(3)]
        return generate_all(engine, asked)


@pytest.mark.parametrize(
    "usage",
    [
        *([1], "many", 7, True, {"prompt_tokens": "5", "completion_tokens": [5]}),
        *({"prompt_tokens": -1, "completion_tokens": float("nan")}, {"completion_tokens": float("inf")}),
        *({"prompt_tokens": 10**400, "completion_tokens": 0.5}, {"prompt_tokens": True, "completion_tokens": {}}),
    ],
    ids=lambda usage: json.dumps(usage)[:40],
)
def test_usage_that_cannot_be_read_counts_as_unknown(usage: Any) -> None:
    assert answers_to(body(usage=usage))[1] == Generation("fine", False, None, 0, 0)


def test_a_whole_count_is_read_whatever_its_type() -> None:
    assert answers_to(body(usage={"prompt_tokens": 5, "completion_tokens": 2.0}))[1][3:] == (5, 2)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (DEEP, "RecursionError"),
        (b'{"choices": ' + DEEP, "RecursionError"),
        (body(usage=1)[:-1] + b', "n": ' + b"1" * 5000 + b"}", "ValueError"),
        (b'{"choices": [{"text": "\xff\xfe"}]}', "UnicodeDecodeError"),
        (b"", "JSONDecodeError"),
        (b"[1]", "a list instead of an object"),
        (body(choices={"0": CHOICE}), "choices is"),
        (body(choices=[]), "choices is"),
        (body(choices=["text"]), "choices is"),
        (choice(message=None), "message is None"),
        (choice(message=["fine"]), "message is"),
        (choice(message={"content": None}), "without content"),
        (choice(message={"content": 5}), "content is 5"),
        (choice(message={"content": ["fine"]}), "content is"),
        (choice(message={"content": "half \ud83d"}), "half a surrogate pair"),
        (choice(message={"content": "fine", "reasoning": {"text": "hm"}}), "reasoning is"),
        (choice(finish_reason=["stop"]), "finish_reason is"),
        (choice(finish_reason=None), "finish_reason is None"),
    ],
)
def test_an_answer_that_is_none_is_the_error_of_its_own_row(odd: bytes, why: str) -> None:
    before, bad, after = answers_to(odd)
    assert before.text == after.text == "right"
    assert bad.text == "" and "3 tries, the last: malformed answer" in bad.error and why in bad.error


def test_fields_that_nothing_reads_may_be_anything() -> None:
    odd = choice(logprobs={"tokens": [float("nan")], "top": "x"}, index="first")
    assert answers_to(odd)[1] == Generation("fine", False)


def test_a_refusal_nested_too_deep_is_read_as_it_is() -> None:
    assert _message(DEEP).startswith("[[[")
    assert _retry_after_secs("Fri, 31 Dec 9999 23:59:59 -2359") >= 0


def test_odd_lists_of_models_leave_out_what_is_no_model() -> None:
    data = {"data": [7, None, {"id": 5, "root": "r"}, {"id": "m", "root": ["r"]}, {"id": "\ud83d"}]}
    assert read_models(data) == [{"root": "r"}, {"id": "m"}, {}]
    with pytest.raises(MalformedAnswer, match="data is 'm'"):
        read_models({"data": "m"})


def test_rows_behind_a_server_are_read_by_the_same_rules(tmp_path: Any) -> None:
    class Odd(ScriptedServer):
        def reply(self, call: Call) -> Reply:
            bodies = {"0": body(usage=[1]), "1": choice(message={"content": 5}) if call.attempt == 0 else body()}
            return Reply(body=bodies[call.prompt])

    rows = [{"id": str(i), "messages": [{"role": "user", "content": str(i)}]} for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Odd() as server:
        where = (tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
        found = answer_rows_at(
            EndpointSettings(server.url, server.model), *where, tag="<|AUDIO|>", sampling={}, progress=False
        )
    assert found == {"answered": 2, "before": 0, "failed": 0}
    answers = {line["id"]: line for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert [answers[i]["answer"] for i in "01"] == ["fine", "fine"] and answers["0"]["num_new_tokens"] is None


def test_readers_take_what_servers_send() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    assert read_completion(read_object(body(usage=usage))) == ("fine", None, "stop", 3, 1)
    assert read_chat({"choices": [{**CHOICE, "message": {"reasoning": "hm", "content": None}}]})[:3] == (
        *(None, "hm"),
        "stop",
    )
