"""``engine=vllm`` of chat, server and evaluation: prompt embeddings in the real vLLM, on a CPU in float32."""

import gc

import pytest

from nemo_desta.answering.engine import ChatEngine, ContextExceeded, prepare
from nemo_desta.answering.sampling import Sampling
from nemo_desta.core.model import SpeechLM
from tests.vllm_plugin.conftest import conversations

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

CONTEXT = 512


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

    from nemo_desta.answering.vllm_decoder import vllm_chat_engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_PLUGINS", "nemo_desta")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        engine = vllm_chat_engine(place.folder, enforce_eager=True, max_model_len=CONTEXT, max_num_seqs=4)
        yield engine
        engine._decoder.engine.engine_core.shutdown()
        gc.collect()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def ours(place):
    return ChatEngine(SpeechLM.from_pretrained(place.folder, device="cpu"))


def answers(engine, chats, *, fit=True, **settings):
    """Text and finish of each, all answered together."""
    sampling = Sampling(temperature=0.0, **settings)
    context = engine.model.context_length if fit else None
    ids = engine.add([prepare(engine.model, chat, sampling, context=context) for chat in chats])
    text, finish = dict.fromkeys(ids, ""), {}
    for _ in range(10_000):
        for delta in engine.step():
            text[delta.chat_id] += delta.text
            if delta.finish is not None:
                finish[delta.chat_id] = delta.finish
        if not engine.num_active:
            break
    assert not engine.num_active, "an answer does not end"
    return [(text[i], finish[i]) for i in ids]


def test_greedy_answers_equal_those_of_the_decode_loop(ours, theirs, chats):
    assert answers(theirs, chats[:20], max_new_tokens=12) == answers(ours, chats[:20], max_new_tokens=12)


def test_repetition_penalty_reads_the_answer_and_no_other_request(ours, theirs, chats):
    settings = {"max_new_tokens": 16, "repetition_penalty": 1.3}
    expected = answers(ours, chats[:8], **settings)
    assert answers(theirs, chats[:8], **settings) == expected
    assert answers(theirs, chats[:8][::-1], **settings) == expected[::-1]


def test_an_answer_that_vllm_ends_itself_ends(theirs, chats):
    (_, finish), *_ = answers(theirs, chats[:1], fit=False, max_new_tokens=4 * CONTEXT)
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
