"""``engine=vllm`` of chat and evaluation: `ChatEngine` on the real vLLM, on a CPU in float32."""

import gc
import json

import pytest

from nemo_desta.answering.engine import ChatEngine, ContextExceeded, prepare
from nemo_desta.answering.offline import answer_rows
from nemo_desta.answering.sampling import Sampling
from nemo_desta.core.model import SpeechLM
from tests.vllm_plugin.conftest import RATE, clip, conversations, wav

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

CONTEXT = 512
LIMIT = {"audio": {"count": 8, "length": 30 * RATE}}


@pytest.fixture(scope="module")
def chats():
    """Short ones."""
    return [
        chat
        for chat in conversations(40)
        if sum(len(p["audio"]) for m in chat for p in m["content"] if isinstance(p, dict) and "audio" in p) < 160_000
    ]


@pytest.fixture(scope="module")
def theirs(place):
    from vllm.distributed import cleanup_dist_env_and_memory

    from nemo_desta.vllm_plugin.chat import vllm_chat_engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        limits = {"max_model_len": CONTEXT, "max_num_seqs": 4, "limit_mm_per_prompt": LIMIT}
        engine = vllm_chat_engine(place.folder, enforce_eager=True, max_batch_size=8, **limits)
        yield engine
        engine._decoder.engine.engine_core.shutdown()
        gc.collect()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def ours(place):
    return ChatEngine(SpeechLM.from_pretrained(place.folder, device="cpu"))


def answers(engine, chats, *, fit=True, **settings):
    """Text, finish and number of new tokens of each, all answered together."""
    sampling = Sampling(**{"temperature": 0.0, **settings})
    context = engine.model.context_length if fit else None
    ready = [prepare(engine.model, chat, sampling, context=context) for chat in chats]
    ids, text, ends = [], {}, {}
    for _ in range(10_000):
        if ready and engine.free_places:
            group, ready = ready[: engine.free_places], ready[engine.free_places :]
            ids += engine.add(group)
        for delta in engine.step():
            text[delta.chat_id] = text.get(delta.chat_id, "") + delta.text
            if delta.finish is not None:
                ends[delta.chat_id] = (delta.finish, delta.num_new_tokens)
        if not engine.num_active and not ready:
            break
    assert not engine.num_active, "an answer does not end"
    return [(text[i], *ends[i]) for i in ids]


def test_greedy_answers_equal_those_of_the_decode_loop(ours, theirs, chats):
    assert answers(theirs, chats[:20], max_new_tokens=12) == answers(ours, chats[:20], max_new_tokens=12)


def test_no_weights_are_loaded_beside_vllms(theirs):
    from torch import nn

    model = theirs.model
    assert not [name for name, value in vars(model).items() if isinstance(value, nn.Module)]
    assert not hasattr(model, "perception") and not hasattr(model, "llm")


def test_repetition_penalty_reads_the_answer_and_no_other_request(ours, theirs, chats):
    settings = {"max_new_tokens": 16, "repetition_penalty": 1.3}
    expected = answers(ours, chats[:8], **settings)
    assert expected != answers(ours, chats[:8], max_new_tokens=16)
    assert answers(theirs, chats[:8], **settings) == expected
    assert answers(theirs, chats[:8][::-1], **settings) == expected[::-1]


def test_a_seeded_answer_does_not_depend_on_the_others(theirs, chats):
    settings = {"max_new_tokens": 12, "temperature": 1.5, "seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
    together = answers(theirs, chats[:6], **settings)
    assert [answers(theirs, [chat], **settings)[0] for chat in chats[:6]] == together
    assert together != answers(theirs, chats[:6], **{**settings, "seed": 4})


def test_a_thinking_budget_forces_the_end_of_a_thought(ours, theirs, chats, monkeypatch):
    """The templates of both are changed to open a thought."""
    for engine in (ours, theirs):
        tokenizer = engine.model.prompts.tokenizer
        opened = tokenizer.chat_template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
        assert opened != tokenizer.chat_template
        monkeypatch.setattr(tokenizer, "chat_template", opened)
    settings = {"max_new_tokens": 24, "max_thinking_tokens": 4, "repetition_penalty": 1.2}
    thinking = [ChatEngine(engine.model, decoder=engine._decoder, max_batch_size=8) for engine in (ours, theirs)]
    expected = answers(thinking[0], chats[:4], **settings)
    assert all("I give my answer now" in text for text, *_ in expected)
    assert answers(thinking[1], chats[:4], **settings) == expected
    assert not len(theirs._decoder)


def test_a_cancelled_answer_is_aborted_in_vllm(ours, theirs, chats):
    sampling = Sampling(max_new_tokens=200)
    first, second = theirs.add([prepare(theirs.model, chat, sampling) for chat in chats[:2]])
    theirs.step()
    theirs.cancel(first)
    theirs.cancel(second)
    assert not theirs.num_active and not theirs._decoder.engine.has_unfinished_requests()
    assert answers(theirs, chats[:2], max_new_tokens=8) == answers(ours, chats[:2], max_new_tokens=8)


def test_an_answer_that_vllm_ends_itself_ends(theirs, chats):
    (_, finish, _), *_ = answers(theirs, chats[:1], fit=False, max_new_tokens=4 * CONTEXT)
    assert finish in ("length", "stop")
    assert not len(theirs._decoder)


def test_the_context_is_the_one_of_vllm(theirs):
    assert theirs.model.context_length == CONTEXT
    with pytest.raises(ContextExceeded, match=f"the LLM has {CONTEXT}"):
        prepare(theirs.model, [{"role": "user", "content": "word " * CONTEXT}], Sampling(), context=CONTEXT)


def test_a_prompt_that_vllm_refuses_leaves_the_others_alone(ours, theirs, chats):
    long = [{"role": "user", "content": "word " * CONTEXT}]
    ready = [prepare(theirs.model, chat, Sampling(max_new_tokens=4)) for chat in (chats[0], long)]
    with pytest.raises(Exception, match=str(CONTEXT)):
        theirs.add(ready)
    assert not theirs.num_active and not len(theirs._decoder)
    assert answers(theirs, chats[:2], max_new_tokens=8) == answers(ours, chats[:2], max_new_tokens=8)


def test_a_file_of_rows_is_answered_and_rows_that_do_not_fit_are_named(ours, theirs, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.wav").write_bytes(wav(clip(1.0 + number, number)))
    rows = [{"id": f"r{i}", "audio": f"{i}.wav", "prompt": "What is it?"} for i in range(3)]
    rows.append({"id": "both", "audio": ["0.wav", "1.wav"], "prompt": "Which?"})
    rows.append({"id": "long", "audio": None, "prompt": "word " * CONTEXT})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    for engine in (ours, theirs):
        output = tmp_path / f"{type(engine.model).__name__}.jsonl"
        options = {"sampling": {"max_new_tokens": 8, "temperature": 0.0}, "progress": False, "name": "m"}
        summary = answer_rows(
            engine.model, tmp_path / "rows.jsonl", output, audio_roots=tmp_path, engine=engine, **options
        )
        said.append(
            {line["id"]: line["answer"] for line in map(json.loads, output.read_text().splitlines()) if "id" in line}
        )
        if engine is theirs:
            assert summary.rejected == {"too_long": 1}
    assert {name: said[0][name] for name in said[1]} == said[1] and len(said[1]) == 4


def test_evaluation_asks_vllm(ours, theirs, place, tmp_path):
    from nemo_desta.evaluation.settings import EvaluateSettings
    from nemo_desta.evaluation.sources import Source

    (tmp_path / "a.wav").write_bytes(wav(clip(1.3, 9)))
    audios = [{"audio": str(tmp_path / "a.wav")}]
    rows = [{"id": "a", "messages": [{"role": "user", "content": "<|AUDIO|>\nWhat is it?", "audios": audios}]}]
    common = {"model": str(place.folder), "sampling": {"temperature": 0.0, "max_new_tokens": 8}, "progress": False}
    said = []
    for name, source in (("vllm", {"engine": theirs}), ("hf", {"model": ours.model})):
        settings = EvaluateSettings(output=str(tmp_path), engine=name, **common)
        said.append(Source(settings, **source).ask(rows, tmp_path / name))
    assert said[0] == said[1] and said[0]["a"]


def test_prefix_and_encoder_caches_are_used(theirs, chats):
    vllm_config = theirs._decoder.engine.vllm_config
    assert vllm_config.cache_config.enable_prefix_caching
    answers(theirs, chats[:3], max_new_tokens=2)
    calls = []
    model = theirs._decoder.engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
    forward = model.perception.forward
    model.perception.forward = lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]
    try:
        answers(theirs, chats[:3], max_new_tokens=2)
    finally:
        del model.perception.forward
    assert not calls
