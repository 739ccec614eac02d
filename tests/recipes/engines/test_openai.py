"""The openai engine against real HTTP servers on this machine that answer by script, well and badly."""

import asyncio
import gc
import logging
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines import EngineError, Generation, OpenAIEngine, Request, Sampling, generate_all
from nemo_desta.recipes.engines.http_client import _retry_after_secs
from nemo_desta.testing.openai_server import Call, Faults, Reply, ScriptedServer

QUICK = {"first_wait_secs": 0.001, "longest_wait_secs": 0.01}
KEY = "sk-secret-7f3a"


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def requests(count: int, sampling: Sampling = Sampling()) -> list[Request]:  # noqa: B008 - frozen
    return [Request(question(f"clip {i}"), sampling, seed=i) for i in range(count)]


def echo(prompt: str) -> str:
    return prompt.split("clip ")[1].split("<")[0] + " it is"


@pytest.fixture
def connect(llm_folder: Path) -> Any:
    def connect(server: ScriptedServer, **options: Any) -> OpenAIEngine:
        if options.get("api") != "chat":
            options.setdefault("tokenizer", str(llm_folder))
        return OpenAIEngine(server.url, server.model, **{**QUICK, **options})

    return connect


@pytest.fixture(autouse=True)
def nothing_unclosed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test may leave a session or connection open, nor an exception that nobody looked at."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(w.message) for w in found if issubclass(w.category, ResourceWarning)] == []
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.WARNING] == []


def test_prompt_is_rendered_here_and_sent_with_the_rows_seed_and_sampling(connect: Any) -> None:
    with ScriptedServer(lambda prompt: "a dog barks") as server:
        engine = connect(server)
        messages = [{"role": "user", "content": "what is this?", "audios": ["kept here"]}]
        answer = generate_all(engine, [Request(messages, Sampling(20, 0.05), seed=77, prefix="<think>\nhm")])[0]
    assert answer == Generation("a dog barks", False, None, answer.prompt_tokens, 3)
    body = server.calls[0].body
    assert body == {
        "model": "scripted",
        "prompt": "<|im_start|>user\nwhat is this?<|im_end|>\n<|im_start|>assistant\n<think>\nhm",
        "max_tokens": 20,
        "seed": 77,
        "temperature": 0.05,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "add_special_tokens": False,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "stop_token_ids": [engine.prompts.end_of_turn_id],
    }
    assert (engine.name, engine.revision, engine.concurrency) == ("scripted", "scripted-root", 128)
    assert "Authorization" not in server.calls[0].headers


def test_no_temperature_leaves_the_sampling_to_the_server(connect: Any) -> None:
    with ScriptedServer(echo) as server:
        generate_all(
            connect(server, extra_body={"min_p": 0.1, "stop_token_ids": None}), requests(1, Sampling(9, None))
        )
    body = server.calls[0].body
    assert not {"temperature", "top_p", "top_k", "stop_token_ids"} & set(body) and body["min_p"] == 0.1


def test_answer_that_was_cut_says_so_and_keeps_no_broken_character(connect: Any) -> None:
    def script(prompt: str) -> Reply:
        kinds = {
            "0": Reply("one two three four"),
            "1": Reply("h\ufffd", "length"),
            "2": Reply("done<|im_end|>", "stop"),
        }
        return kinds[echo(prompt)[0]]

    with ScriptedServer(script) as server:
        answers = generate_all(connect(server), requests(3, Sampling(2)))
    assert [(a.text, a.truncated) for a in answers] == [("one two", True), ("h", True), ("done", False)]


def test_every_answer_arrives_once_and_right_from_a_faulty_server(connect: Any) -> None:
    faults = Faults(http_500=0.05, dropped=0.02, malformed=0.02)
    with ScriptedServer(echo, faults=faults, delay_secs=0.002, seed=3) as server:
        engine = connect(server, concurrency=64)
        answers = generate_all(engine, requests(1000))
    assert [answer.text for answer in answers] == [f"{i} it is" for i in range(1000)]
    assert not any(answer.error or answer.truncated for answer in answers)
    assert server.counts["status 200"] == 1000  # the server gave no answer twice
    assert server.most_in_flight <= 64
    retries = {"status 500": "500", "connection": "dropped", "malformed answer": "malformed"}
    assert engine.stats["retries"] == {cause: server.counts[fault] for cause, fault in retries.items()}
    assert min(engine.stats["retries"].values()) >= 10
    assert engine.stats["requests"] == 1 + len(server.calls)  # one to ask for the models
    assert (engine.stats["answers"], engine.stats["errors"]) == (1000, 0)


def test_retry_after_is_honoured(connect: Any) -> None:
    times: list[float] = []

    class Busy(ScriptedServer):
        def reply(self, call: Call) -> Reply:
            times.append(time.monotonic())
            return Reply(status=429, headers={"Retry-After": "0.3"}) if call.attempt == 0 else Reply("now")

    with Busy() as server:
        engine = connect(server)
        assert generate_all(engine, requests(1))[0].text == "now"
    assert times[1] - times[0] >= 0.3
    assert engine.stats["retries"] == {"status 429": 1}


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 55 < _retry_after_secs(later) <= 60
    assert [_retry_after_secs(value) for value in (None, "soon", "-3", "2.5")] == [0.0, 0.0, 0.0, 2.5]


def test_server_that_asks_for_hours_is_not_waited_for(connect: Any) -> None:
    with ScriptedServer(lambda prompt: Reply(status=429, headers={"Retry-After": "7200"})) as server:
        with pytest.raises(EngineError, match="come back in 7200 s"):
            generate_all(connect(server), requests(1))


def test_rate_limit_that_does_not_end_stops_the_run(connect: Any) -> None:
    with ScriptedServer(lambda prompt: Reply(status=429, message="quota used up")) as server:
        with pytest.raises(EngineError, match="3 tries, the last: status 429 .quota used up"):
            generate_all(connect(server, max_retries=2), requests(1))
    assert len(server.calls) == 3


def test_request_that_always_breaks_the_server_is_its_own_error(connect: Any) -> None:
    def script(prompt: str) -> str | Reply:
        return Reply(status=500, message="kernel panic") if "clip 3<" in prompt else echo(prompt)

    with ScriptedServer(script) as server:
        engine = connect(server, max_retries=3)
        answers = generate_all(engine, requests(8))
        alone = generate_all(engine, requests(8)[3:4])  # nothing else is answered meanwhile, but the server lives
    assert [answer.error is None for answer in answers] == [i != 3 for i in range(8)]
    assert answers[3].error == alone[0].error == "4 tries, the last: status 500 (kernel panic)"
    assert engine.stats["errors"] == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_request_that_the_server_refuses_is_its_own_error(connect: Any, status: int) -> None:
    def script(prompt: str) -> str | Reply:
        return Reply(status=status, message="prompt has 9000 tokens") if "clip 1<" in prompt else echo(prompt)

    with ScriptedServer(script) as server:
        answers = generate_all(connect(server), requests(3))
    assert answers[1].error == f"the server refuses this request ({status}): prompt has 9000 tokens"
    assert [answers[0].text, answers[2].text] == ["0 it is", "2 it is"] and len(server.calls) == 3


def test_key_comes_from_the_environment_and_shows_up_nowhere(
    connect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    with ScriptedServer(echo, api_key=KEY, faults=Faults(0.2, 0.2, 0.2)) as server:
        engine = connect(server, api_key_env="MY_KEY")
        assert [answer.error for answer in generate_all(engine, requests(30))] == [None] * 30
        monkeypatch.setenv("MY_KEY", KEY + "-old")
        with pytest.raises(EngineError) as caught:
            generate_all(connect(server, api_key_env="MY_KEY"), requests(3))
        monkeypatch.delenv("MY_KEY")
        with pytest.raises(EngineError, match="401.*environment variable MY_KEY is not set"):
            generate_all(connect(server, api_key_env="MY_KEY"), requests(3))
    assert server.calls[0].headers["Authorization"] == f"Bearer {KEY}"
    assert "environment variable MY_KEY is refused" in str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert KEY not in repr(chain)
        chain = chain.__cause__ or chain.__context__
    assert KEY not in caplog.text and KEY not in repr(engine) + repr(vars(engine)) + repr(vars(engine.client))


def test_key_that_a_server_repeats_is_cut_out(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedServer(lambda prompt: Reply(status=400, message=f"bad header Bearer {KEY}")) as server:
        assert generate_all(connect(server), requests(1))[0].error.endswith("bad header Bearer <key>")


def test_unknown_model_names_those_that_the_server_has(connect: Any) -> None:
    with ScriptedServer(echo, model="qwen3-4b") as server:
        engine = connect(server)
        engine.name = "qwen3-8b"
        with pytest.raises(EngineError, match="404.*it serves: qwen3-4b; asked for: qwen3-8b"):
            generate_all(engine, requests(2))


def test_address_without_completions_is_named(llm_folder: Path) -> None:
    with ScriptedServer(echo) as server:
        engine = OpenAIEngine(server.url + "/beta", "scripted", tokenizer=str(llm_folder), **QUICK)
        with pytest.raises(EngineError, match="/v1/beta answered 404"):
            generate_all(engine, requests(1))


def test_no_server_is_an_error_that_names_the_address(llm_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    engine = OpenAIEngine(url, "m", tokenizer=str(llm_folder), **QUICK)
    with pytest.raises(EngineError, match=f"no server answers at {url}/v1 .6 tries.*connection"):
        generate_all(engine, requests(5))
    with pytest.raises(EngineError, match="is it running"):
        engine.connect()


def test_server_that_goes_away_stops_the_run(connect: Any) -> None:
    server = ScriptedServer(echo)
    with server:
        engine = connect(server, max_retries=2)
        assert generate_all(engine, requests(1))[0].text == "0 it is"
    with pytest.raises(EngineError, match="does not answer any more: 3 tries"):
        generate_all(engine, requests(5))


def test_slow_answer_is_given_up_and_asked_for_again(connect: Any) -> None:
    class Slow(ScriptedServer):
        def reply(self, call: Call) -> Reply:
            return Reply("late", delay_secs=20.0 if call.attempt == 0 else 0.0)

    with Slow() as server:
        engine = connect(server, timeout_secs=0.5)
        assert generate_all(engine, requests(1))[0].text == "late"
    assert engine.stats["retries"] == {"timeout": 1}


def test_waiting_for_a_free_slot_is_not_counted_as_time_without_answer(connect: Any) -> None:
    with ScriptedServer(echo, delay_secs=0.1) as server:
        engine = connect(server, timeout_secs=1.0, concurrency=1)
        assert len(generate_all(engine, requests(15))) == 15
    assert engine.stats["retries"] == {} and server.most_in_flight == 1


def test_cancelled_rows_leave_no_connection_open(connect: Any) -> None:
    with ScriptedServer(echo, delay_secs=3600.0) as server:
        engine = connect(server)

        async def interrupted() -> None:
            tasks = [asyncio.create_task(engine.generate(request)) for request in requests(20)]
            while len(server.calls) < 20:
                await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await engine.close()

        asyncio.run(interrupted())
        # The scripted server ends a call whose client has gone; by themselves they would last an hour.
        deadline = time.monotonic() + 20
        while server.in_flight and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.in_flight == 0


def test_engine_that_is_closed_while_rows_wait_stops_them(connect: Any) -> None:
    with ScriptedServer(echo, delay_secs=5.0) as server:
        engine = connect(server)

        async def closed() -> list[Any]:
            tasks = [asyncio.create_task(engine.generate(request)) for request in requests(3)]
            while len(server.calls) < 3:
                await asyncio.sleep(0.005)
            await engine.close()
            return await asyncio.gather(*tasks, return_exceptions=True)

        assert all(isinstance(error, EngineError) for error in asyncio.run(closed()))


def test_one_engine_serves_several_event_loops_one_after_the_other(connect: Any) -> None:
    with ScriptedServer(echo) as server:
        engine = connect(server)
        engine.connect()
        assert engine.revision == "scripted-root" and not server.calls
        for _ in range(3):
            assert [a.text for a in generate_all(engine, requests(5))] == [f"{i} it is" for i in range(5)]
        assert engine.stats["requests"] == 16


def test_connect_works_inside_an_event_loop_too(connect: Any) -> None:
    with ScriptedServer(echo, root="/models/secret/place/Qwen3-4B") as server:
        engine = connect(server)

        async def main() -> str:
            engine.connect()
            answer = await engine.generate(requests(1)[0])
            await engine.close()
            return answer.text

        assert asyncio.run(main()) == "0 it is"
    assert engine.revision == "Qwen3-4B"  # not the folder's place


def test_server_that_filters_or_aborts_is_told_apart(connect: Any) -> None:
    class Moody(ScriptedServer):
        def reply(self, call: Call) -> Reply:
            if "clip 0<" in call.prompt:
                return Reply("", "content_filter")
            return Reply("part", "abort") if call.attempt == 0 else Reply("whole")

    with Moody() as server:
        engine = connect(server)
        answers = generate_all(engine, requests(2))
    assert "content filter" in answers[0].error and answers[1].text == "whole"
    assert engine.stats["retries"] == {"malformed answer": 1}


CHAT = {"0": Reply("plain"), "1": Reply("A dog.", reasoning="\nbarks\n"), "2": Reply("", "length", reasoning="let me")}


def test_chat_puts_a_split_thought_back(connect: Any) -> None:
    with ScriptedServer(lambda prompt: CHAT[prompt.split()[-1]]) as server:
        engine = connect(server, api="chat", chat_template_kwargs={"enable_thinking": True})
        answers = generate_all(engine, requests(3, Sampling(9, 0.5, top_k=3)))
    assert [(a.text, a.truncated) for a in answers] == [
        ("plain", False),
        ("<think>\nbarks\n</think>\n\nA dog.", False),
        ("<think>\nlet me", True),
    ]
    assert engine.prompts is None and all(call.chat for call in server.calls)
    body = next(call.body for call in server.calls if call.prompt == "clip 0")
    assert body == {
        "model": "scripted",
        "messages": question("clip 0"),
        "max_tokens": 9,
        "seed": 0,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 3,
        "chat_template_kwargs": {"enable_thinking": True},
    }


def test_chat_writes_what_completions_would_where_the_template_opens_the_thought(connect: Any) -> None:
    with ScriptedServer(lambda prompt: CHAT["1"]) as server:
        engine = connect(server, api="chat", tokenizer="package:demo/assets/llm_reasoning")
        assert generate_all(engine, requests(1))[0].text == "barks\n</think>\n\nA dog."


def test_chat_cannot_go_on_from_a_prefix(connect: Any) -> None:
    with ScriptedServer(lambda prompt: "x") as server:
        with pytest.raises(EngineError, match="no budget forcing over chat"):
            generate_all(connect(server, api="chat"), [Request(question("x"), Sampling(), 0, prefix="<think>")])
    assert not server.calls


def test_wrong_settings_are_named(llm_folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown api 'chats'.*Did you mean 'chat'"):
        OpenAIEngine("http://localhost:8000/v1", "m", api="chats")
    with pytest.raises(ConfigError, match="must be like http://localhost:8000/v1, found 'localhost:8000'"):
        OpenAIEngine("localhost:8000", "m", tokenizer=str(llm_folder))
    with pytest.raises(ConfigError, match="carries a user, a password") as caught:
        OpenAIEngine("https://me:hunter2@host/v1", "m", tokenizer=str(llm_folder))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(EngineError, match="no tokenizer 'served-name'.*api=chat"):
        OpenAIEngine("http://localhost:8000/v1", "served-name")


def test_scripted_server_ends_its_thread() -> None:
    with ScriptedServer(echo) as server:
        name = server._thread.name
        assert name in {thread.name for thread in threading.enumerate()}
    assert name not in {thread.name for thread in threading.enumerate()}
