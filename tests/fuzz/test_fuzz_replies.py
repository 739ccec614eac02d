"""Answers of a server with random faults: each is an answer, or the error of its own request; never else.

``FUZZ_CASES`` makes it longer.
"""

import asyncio
import json
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_desta.evaluation.endpoint import _parse
from nemo_desta.recipes.engines import OpenAIEngine, Request, Sampling
from nemo_desta.recipes.engines.http_client import RequestFailed
from nemo_desta.recipes.engines.replies import MalformedAnswer, read_models, read_object
from nemo_desta.recipes.pipeline import Outcome
from nemo_desta.recipes.pipeline.folder import dump_line
from nemo_desta.recipes.pipeline.shard import outcome_of
from nemo_desta.testing.openai_server import Reply, ScriptedServer
from tests.fuzz.mutants import REPRODUCIBLE, paths_of

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("FUZZ_CASES", 500))
CHOICE = {
    **{"index": 0, "finish_reason": "stop", "text": "fine", "logprobs": {"tokens": ["a"], "token_logprobs": [-0.1]}},
    "message": {"role": "assistant", "content": "fine", "reasoning_content": "hm", "tool_calls": []},
}
BODY = {
    **{"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [CHOICE]},
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
}
REQUEST = Request([{"role": "user", "content": "hi"}], Sampling(9), 0)

leaves = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(["", "stop", "length", "content_filter", "\ud83d", 10**400, float("nan"), -1, 1e308, "5"])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
noise = st.sampled_from(
    [*(b"\xff", b"\x00", b"\xef\xbb\xbf", b"\n", b'"', b",", b"}", b"]", b"\\ud83d", b"NaN"), b"[" * 100_000]
    + [b"9" * 5000, b'{"a":' * 50_000, b"1e400"]
) | st.binary(max_size=6)
outcomes: Counter[str] = Counter()


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A good body with one to three places changed or removed, perhaps cut, perhaps with noise."""
    result = json.loads(json.dumps(BODY))
    for _ in range(draw(st.integers(1, 3))):
        *parents, key = draw(st.sampled_from(paths_of(result) or [()]) if result else st.just(("id",)))
        holder = result
        for step in parents:
            holder = holder[step]
        if draw(st.integers(0, 3)):
            holder[key] = draw(values)
        elif key in holder or isinstance(holder, list):
            del holder[key]
    data = json.dumps(draw(st.just(result) | st.just(result) | st.just(result) | values)).encode()
    at = draw(st.integers(0, len(data)))
    fault = draw(st.sampled_from(["none", "none", "cut", "noise"]))
    if fault == "cut":
        return data[:at]
    return data[:at] + draw(noise) + data[at:] if fault == "noise" else data


@pytest.fixture(scope="module")
def engine() -> OpenAIEngine:
    return OpenAIEngine("http://127.0.0.1:9/v1", "m", api="chat")


def test_the_parse(engine: OpenAIEngine) -> None:
    @settings(max_examples=CASES, **REPRODUCIBLE)
    @given(bodies())
    def parsed(body: bytes) -> None:
        for parse in (engine._parse_chat, engine._parse_completion, _parse, read_models):
            try:
                found = parse(read_object(body))
            except (MalformedAnswer, RequestFailed):
                outcomes["named"] += 1
                continue
            outcomes["used"] += 1
            assert json.loads(dump_line(found)) == json.loads(json.dumps(found, allow_nan=False))

    parsed()
    print(f"\nparse: {sum(outcomes.values())} tried, {dict(outcomes)}, crashed 0")
    assert min(outcomes["named"], outcomes["used"]) > CASES / 4


def test_over_http() -> None:
    """A share of them over the wire, as many statuses; good answers between them arrive as they are."""
    found: Counter[str] = Counter()
    sent: list[Reply] = []
    with ScriptedServer(lambda prompt: sent[-1] if prompt == "odd" else "right", keep_calls=False) as server:
        quick = {"first_wait_secs": 0.0, "longest_wait_secs": 0.0, "max_retries": 1}
        engine = OpenAIEngine(server.url, server.model, api="chat", **quick)

        async def both() -> list[Any]:
            try:
                odd = Request([{"role": "user", "content": "odd"}], Sampling(9), 0)
                return [await engine.generate(odd), await engine.generate(REQUEST)]
            finally:
                await engine.close()

        @settings(max_examples=CASES // 4, **REPRODUCIBLE)
        @given(bodies(), st.sampled_from([200, 200, 200, 400, 422, 500, 503]))
        def asked(body: bytes, status: int) -> None:
            sent.append(Reply(body=body, status=status))
            odd, right = asyncio.run(both())
            assert right.text == "right"
            assert (odd.error is None) or odd.text == ""
            record = {"row": {"response": odd.text}, "reason": None, "detail": None, "attempts": 1}
            line = json.loads(dump_line({**record, "tokens": odd[3:]}))
            assert outcome_of(line) == Outcome({"response": odd.text}, None, 1, *odd[3:])
            found["named" if odd.error else "used"] += 1

        asked()
    print(f"\nover HTTP: {sum(found.values())} tried, {dict(found)}, crashed 0")
    assert found["named"] and found["used"]
