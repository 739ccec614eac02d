"""The running server and the official client: what comes back is what the model says, however it is asked."""

import asyncio
import concurrent.futures
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from openai import AsyncOpenAI, BadRequestError

from nemo_desta.config import TranscriptConfig
from nemo_desta.core.thinking import CUT_SENTENCE
from nemo_desta.data.audio_io import load_audio
from nemo_desta.models.desta import DestaModel
from nemo_desta.recipes.engines import OpenAIEngine, Request, SamplingConfig
from nemo_desta.serving.audio import AudioBudget
from tests.serving.serving_tools import (
    NAME,
    RATE,
    audio_part,
    client,
    counters,
    encoded,
    noise,
    post,
    served,
    text_part,
    tiny_model,
    user,
)


@pytest.fixture(scope="module")
def server(model):
    with served(model) as server:
        yield server


def ask(server, *messages, **more):
    return client(server).chat.completions.create(model=NAME, messages=list(messages), **{"temperature": 0} | more)


def text(answer):
    return answer.choices[0].message.content


def streamed(server, *messages, **more):
    """All chunks of a streamed answer."""
    return list(ask(server, *messages, stream=True, **more))


def question(*clips, text="What is it?"):
    """The same question for `model.chat`."""
    tags = "<|AUDIO|>\n" * len(clips)
    return {"role": "user", "content": tags + text, "audios": [{"audio": c, "sampling_rate": RATE} for c in clips]}


def test_text_is_answered_as_the_model_answers_it(server, model):
    said = ask(server, user("What is it?"))
    expected = model.chat([user("What is it?")], max_new_tokens=12, temperature=0)
    assert text(said) == expected and said.choices[0].finish_reason == expected.finish
    assert said.object == "chat.completion" and said.model == NAME
    assert said.usage.prompt_tokens == expected.num_prompt_tokens
    assert said.usage.completion_tokens == expected.num_new_tokens
    assert said.usage.total_tokens == said.usage.prompt_tokens + said.usage.completion_tokens
    assert said.usage.prompt_tokens_details.audio_tokens == 0


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "ogg", "opus"])
def test_an_audio_is_heard_as_the_model_hears_its_file(server, model, format):
    samples = noise(1.3)
    data = encoded(samples, format=format)
    said = ask(server, user(audio_part(data, format), text_part("What is it?")))
    heard = AudioBudget(10).load(data, format=format, sampling_rate=RATE, where="here")
    expected = model.chat([question(heard)], max_new_tokens=12, temperature=0)
    assert text(said) == expected
    assert said.usage.prompt_tokens == expected.num_prompt_tokens
    assert said.usage.prompt_tokens_details.audio_tokens == model.num_audio_tokens(len(heard)) > 0


def test_other_rates_and_channels_are_heard_whole(server, model):
    stereo = np.stack([noise(3, 1, 44_100), noise(3, 2, 44_100)], axis=1)
    said = ask(server, user(audio_part(encoded(stereo, rate=44_100)), text_part("What is it?")))
    assert said.usage.prompt_tokens_details.audio_tokens == model.num_audio_tokens(3 * RATE)


def test_several_audios_keep_their_places(server, model):
    one, two = noise(0.7, 1), noise(1.9, 2)
    parts = [audio_part(encoded(one)), text_part("and"), audio_part(encoded(two)), text_part("What is it?")]
    said = ask(server, user(*parts))
    audios = [{"audio": one}, {"audio": two}]
    messages = [{"role": "user", "content": "<|AUDIO|>\nand\n<|AUDIO|>\nWhat is it?", "audios": audios}]
    assert text(said) == model.chat(messages, max_new_tokens=12, temperature=0)
    swapped = ask(server, user(parts[2], parts[1], parts[0], parts[3]))
    assert text(swapped) != text(said)


def test_the_second_turn_runs_no_encoder(server, model):
    first = user(audio_part(encoded(noise(1.0, 3))), text_part("What is it?"))
    said = ask(server, first)
    before = counters(server)
    again = ask(server, first, said.choices[0].message, user("And then?"))
    after = counters(server)
    assert after["nemo_desta_encoded_clips_total"] == before["nemo_desta_encoded_clips_total"]
    assert after["nemo_desta_audio_cache_hits_total"] == before["nemo_desta_audio_cache_hits_total"] + 1
    turns = [question(noise(1.0, 3)), {"role": "assistant", "content": text(said)}, user("And then?")]
    assert text(again) == model.chat(turns, max_new_tokens=12, temperature=0)


def test_a_stream_joined_is_the_whole_answer(server):
    message = user(audio_part(encoded(noise(1.0, 4))), text_part("What is it?"))
    whole = ask(server, message, max_tokens=30)
    chunks = streamed(server, message, max_tokens=30)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces) == text(whole)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_tells_its_usage_when_asked(server):
    whole = ask(server, user("Hello"))
    chunks = streamed(server, user("Hello"), stream_options={"include_usage": True})
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_the_locator_tag_in_a_text_is_text(server, model):
    plain = ask(server, user("Say <|AUDIO|> twice"))
    ids = model.prompts.tokenize(model.prompts.render([user("Say <|AUDIO|> twice")]))
    assert plain.usage.prompt_tokens == len(ids)
    beside = ask(server, user(text_part("<|AUDIO|>"), audio_part(encoded(noise(1.0)))))
    assert beside.usage.prompt_tokens_details.audio_tokens == model.num_audio_tokens(RATE)


def test_settings_of_the_caller_count(server, model):
    def both(**sampling):
        extra = {k: sampling.pop(k) for k in ("top_k", "min_p", "repetition_penalty") if k in sampling}
        said = ask(server, user("Hello"), max_tokens=20, **sampling, extra_body=extra)
        ours = model.chat([user("Hello")], max_new_tokens=20, **{"temperature": 0} | sampling | extra)
        assert text(said) == ours
        return ours

    greedy = both()
    assert both(temperature=1.5, seed=3) != greedy
    assert both(temperature=1.5, seed=3, top_p=0.5) != both(temperature=1.5, seed=3)
    assert both(temperature=1.5, seed=4, top_k=5) != both(temperature=1.5, seed=4)
    assert both(temperature=1.5, seed=5, min_p=0.2) != both(temperature=1.5, seed=5)
    assert both(repetition_penalty=3.0) != greedy
    stopped = both(stop=[greedy[4:6]])
    assert greedy.startswith(stopped) and len(stopped) < len(greedy)


def test_what_is_not_given_comes_from_the_servers_limits(server):
    said = ask(server, user("Hello"))
    assert said.usage.completion_tokens <= 12  # max_new_tokens of this server
    assert ask(server, user("Hello"), max_completion_tokens=3).usage.completion_tokens <= 3


def test_a_developer_is_the_system(server):
    answers = [ask(server, {"role": role, "content": "Be brief."}, user("Hello")) for role in ("system", "developer")]
    assert text(answers[0]) == text(answers[1]) != text(ask(server, user("Hello")))


#: Fields whose value asks for nothing, as clients send them.
NOTHING = [
    {"frequency_penalty": 0.0, "presence_penalty": -0.0, "n": 1.0, "top_logprobs": 0.0, "top_k": 0.0, "min_p": 0},
    {"tools": [], "functions": [], "tool_choice": "auto", "function_call": "none", "parallel_tool_calls": False},
    {"logit_bias": {}, "stop": None, "stream_options": {}, "response_format": {}, "chat_template_kwargs": {}},
    {"stop": [], "logprobs": False, "store": False, "service_tier": "auto", "modalities": ["text"], "user": "me"},
    {"seed": 3.0, "max_tokens": 12.0, "top_p": 1, "repetition_penalty": 1, "stream": False, "audio": None},
    {"n": 1, "frequency_penalty": 0, "response_format": {"type": "text"}, "logprobs": None, "metadata": {"a": "b"}},
    {"stream_options": {"include_usage": False, "include_obfuscation": False}, "verbosity": None, "tool_choice": None},
]


@pytest.mark.parametrize("more", NOTHING)
def test_values_that_ask_for_nothing_are_taken(server, more):
    expected = ask(server, user("Hello")).choices[0].message.content
    body = {"model": NAME, "messages": [user("Hello")], "temperature": 0, "max_tokens": 12, **more}
    response = post(server, json.dumps(body).encode())  # as they stand: the client would leave some out
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == expected


def test_the_official_client_may_name_penalties_and_speakers(server):
    expected = ask(server, user("Hello")).choices[0].message.content
    answer = ask(server, {**user("Hello"), "name": "Anna-1"}, frequency_penalty=0.0, presence_penalty=0.0, n=1)
    assert answer.choices[0].message.content == expected


def test_an_answer_may_be_sent_back_as_the_official_client_holds_it(server):
    message = ask(server, user("Hello")).choices[0].message.model_dump()
    message["content"] = message["content"] or "x"
    more = {"annotations": [], "tool_calls": [], "refusal": ""}
    assert ask(server, user("Hello"), message | more, user("And?")).choices[0].finish_reason


def test_concurrent_requests_get_the_answers_they_get_alone(server):
    """Greedy, token by token, though they join and leave a batch in the middle of each other's answers."""
    asked = []
    for i in range(16):
        clips = [audio_part(encoded(noise(0.3 + 0.17 * i, 10 * i + j))) for j in range(i % 3)]
        asked.append((user(*clips, text_part(f"Question {i}?")), {"max_tokens": 3 + 4 * (i % 7)}))
    alone = [ask(server, message, **more) for message, more in asked]
    before = counters(server)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda pair: ask(server, pair[0], **pair[1]), asked))
    after = counters(server)
    assert [text(a) for a in together] == [text(a) for a in alone]
    assert [a.usage for a in together] == [a.usage for a in alone]
    steps = after["nemo_desta_decode_steps_total"] - before["nemo_desta_decode_steps_total"]
    tokens = after["nemo_desta_new_tokens_total"] - before["nemo_desta_new_tokens_total"]
    assert tokens == sum(a.usage.completion_tokens for a in together)
    assert tokens > 2 * steps  # they were answered side by side


def test_the_async_client_streams_many_at_once(server):
    async def one(ours, i):
        stream = await ours.chat.completions.create(
            model=NAME, messages=[user(f"Question {i}?")], temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them():
        async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as ours:
            return await asyncio.gather(*(one(ours, i) for i in range(8)))

    assert asyncio.run(all_of_them()) == [text(ask(server, user(f"Question {i}?"))) for i in range(8)]


def test_the_recipes_engine_is_a_client_of_it(server, model):
    async def generate():
        engine = OpenAIEngine(server.url, NAME, api="chat", api_key_env="NOT_SET", max_retries=0)
        try:
            messages = [user("What is it?")]
            return await engine.generate(Request(messages, SamplingConfig(12, temperature=0.0), seed=2**63))
        finally:
            await engine.close()

    generation = asyncio.run(generate())
    assert generation.text == text(ask(server, user("What is it?"))) and generation.new_tokens == 12


@pytest.mark.slow
def test_ten_minutes_are_heard_to_the_last_second(tmp_path):
    model = tiny_model(tmp_path)
    model.llm.config.max_position_embeddings = 8192
    minutes = np.tile(noise(10), 60)
    with served(model) as server:
        said = ask(server, user(audio_part(encoded(minutes, format="flac"), "flac"), text_part("What?")), max_tokens=3)
    assert said.usage.prompt_tokens_details.audio_tokens == model.num_audio_tokens(600 * RATE) == 3750


def test_the_context_may_be_made_shorter(model):
    with served(model, max_context=40) as server:
        said = ask(server, user("Hello"), max_tokens=500)
        assert said.usage.total_tokens == 40 and said.choices[0].finish_reason == "length"
        with pytest.raises(BadRequestError, match="the LLM has 40") as caught:
            ask(server, user("Hello " * 40))
        assert caught.value.code == "context_length_exceeded"


def test_models_are_listed(server):
    listed = client(server).models.list().data
    assert [model.id for model in listed] == [NAME] and listed[0].object == "model"
    assert client(server).models.retrieve(NAME).id == NAME


def test_metrics_count_requests_tokens_and_seconds(server):
    before = counters(server)
    said = ask(server, user(audio_part(encoded(noise(2.5, 77))), text_part("What?")))
    after = counters(server)

    def grown(name):
        return after[f"nemo_desta_{name}"] - before.get(f"nemo_desta_{name}", 0)

    assert grown('requests_total{status="200"}') == 1
    assert grown("audio_seconds_total") == 2.5 and grown("encoded_clips_total") == 1
    assert grown("prompt_tokens_total") == said.usage.prompt_tokens
    assert grown("new_tokens_total") == said.usage.completion_tokens
    assert grown("time_to_first_token_seconds_count") == grown("request_seconds_count") == 1
    assert after["nemo_desta_requests_running"] == after["nemo_desta_requests_waiting"] == 0


def test_transcripts_of_the_caller_reach_the_prompt(tmp_path):
    config = tiny_model(tmp_path, template="chatml").config
    prompt = replace(config.prompt, transcript=TranscriptConfig(enabled=True))
    model = DestaModel(replace(config, prompt=prompt)).eval()
    model.__dict__["transcriber"] = lambda clips: ["a dog barks"] * len(clips)  # stands in for Whisper's decoder
    with served(model, transcriber=True) as server:
        spoken = user(audio_part(encoded(noise(1.0)), transcript="a dog barks"), text_part("What?"))
        silent = user(audio_part(encoded(noise(1.0))), text_part("What?"))
        said, without = ask(server, spoken), ask(server, silent)
        assert said.usage.prompt_tokens > without.usage.prompt_tokens
        left_out = ask(server, spoken, extra_body={"transcript": "none"})
        assert left_out.usage == without.usage and text(left_out) == text(without)
        written = ask(server, silent, extra_body={"transcript": "whisper"})
        assert written.usage == said.usage and text(written) == text(said)


def test_blocks_give_the_samples_of_the_whole_file(tmp_path):
    stereo = np.stack([noise(41, 1, 48_000), noise(41, 2, 48_000)], axis=1)  # more than one block
    data = encoded(stereo, rate=48_000, format="flac")
    heard = AudioBudget(100).load(data, format="flac", sampling_rate=RATE, where="here")
    file = io.BytesIO()
    soundfile.write(file, stereo, 48_000, format="FLAC", subtype="PCM_16")
    file.seek(0)
    np.testing.assert_array_equal(heard, load_audio(file, RATE))


# ---- thinking, with the small reasoning LLM that ships


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    config = tiny_model(tmp_path_factory.mktemp("thinker")).config
    torch.manual_seed(2)
    config = replace(config, llm=replace(config.llm, path="package:demo/assets/llm_reasoning"))
    with served(DestaModel(config).eval(), max_new_tokens=200) as server:
        yield server


QUESTION = user("The sound: a dog barks twice. How many times does the dog bark?")


def test_a_thought_comes_apart_from_the_answer(thinker):
    message = ask(thinker, QUESTION).choices[0].message
    assert message.reasoning_content and "think>" not in message.reasoning_content + message.content
    chunks = streamed(thinker, QUESTION)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == message.reasoning_content
    assert "".join(d.content or "" for d in deltas) == message.content
    again = ask(thinker, QUESTION, message, user("Sure?"))  # clients send whole messages back, thoughts included
    assert again.choices[0].finish_reason in ("stop", "length")


def test_a_thought_ends_within_its_budget(thinker):
    free = ask(thinker, QUESTION)
    short = ask(thinker, QUESTION, extra_body={"max_thinking_tokens": 3})
    assert len(short.choices[0].message.reasoning_content) != len(free.choices[0].message.reasoning_content)
    assert short.choices[0].message.reasoning_content.endswith(CUT_SENTENCE)
    assert short.choices[0].message.content
