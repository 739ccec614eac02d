"""Model folders in the real vLLM, on a CPU in float32, against the class of transformers."""

import gc
import os

import pytest
import torch

from nemo_desta.answering.chat import answer
from tests.vllm_plugin.conftest import answers_of_transformers, clip, conversations, openai_message, whole

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

NEW = 12
COUNT = 200
#: Clips per prompt, and samples of the longest: vLLM encodes one of that length at the start.
LIMIT = {"audio": {"count": 16, "length": 100 * 16_000}}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """vLLM in this process, with our entry point alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_PLUGINS", "nemo_desta")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        yield


def start(place, folder=None, **options):
    from vllm import LLM

    options = {"max_model_len": 4096, "max_num_seqs": 16, "limit_mm_per_prompt": LIMIT, **options}
    return LLM(str(folder or place.folder), dtype="float32", enforce_eager=True, **options)


def stop(llm):
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def engine(place):
    llm = start(place)
    yield llm
    stop(llm)


def refused(match):
    """A block that vLLM answers with an error about the request."""
    from vllm.exceptions import VLLMValidationError

    return pytest.raises(VLLMValidationError, match=match)


def greedy(llm, chats, **options):
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=NEW, **options)
    return llm.chat([[openai_message(m) for m in chat] for chat in chats], params, use_tqdm=False)


@pytest.fixture(scope="module")
def reference(theirs):
    """(conversation) -> prompt ids and greedy ids of the class of transformers."""
    return _reference(theirs)


def _reference(theirs):
    def run(chat):
        processor, inputs, ids = theirs(chat, NEW)
        return held(inputs, processor), ids[0].tolist()

    return run


def held(inputs, processor):
    """The prompt's ids as in vLLM: the audio token's id is beyond the vocabulary, so the padding's holds its place."""
    assert processor.audio_token_id == len(processor.tokenizer) - 1
    pad = processor.tokenizer.pad_token_id
    return [pad if i == processor.audio_token_id else i for i in inputs["input_ids"][0].tolist()]


@pytest.fixture(scope="module")
def expected(reference):
    chats = conversations(COUNT)
    return chats, [reference(chat) for chat in chats]


def check(outputs, expected):
    prompts = [i for i, (o, (ids, _)) in enumerate(zip(outputs, expected, strict=True)) if o.prompt_token_ids != ids]
    assert not prompts
    wrong = [i for i, (o, (_, ids)) in enumerate(zip(outputs, expected, strict=True)) if _ids(o) != ids]
    assert not wrong


def _ids(output):
    return list(output.outputs[0].token_ids)


def test_answers_of_mixed_conversations_equal_those_of_transformers(engine, expected):
    chats, ids = expected
    check(greedy(engine, chats), ids)
    assert len({tuple(new) for _, new in ids}) > COUNT // 4  # they are not all one answer


def test_answers_equal_those_of_our_own_chat(place, engine):
    from nemo_desta.core.model import SpeechLM

    model = SpeechLM.from_pretrained(place.folder, device="cpu")
    chats = conversations(8)
    texts = [whole(output.outputs[0].text) for output in greedy(engine, chats)]
    assert texts == [whole(answer(model, chat, max_new_tokens=NEW, temperature=0)) for chat in chats]


def test_the_same_conversations_again_are_read_from_the_caches(engine, expected):
    chats, ids = expected[0][:40], expected[1][:40]
    greedy(engine, chats)
    calls = []

    def count(model):
        forward = model.perception.forward
        model.perception.forward = lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]

    engine.apply_model(count)
    outputs = greedy(engine, chats)
    engine.apply_model(lambda model: model.perception.__dict__.pop("forward"))
    check(outputs, ids)
    assert not calls
    block = engine.llm_engine.vllm_config.cache_config.block_size
    cached = [output.num_cached_tokens for output in outputs]
    assert cached == [(len(output.prompt_token_ids) - 1) // block * block for output in outputs]
    assert max(cached) > 0


def test_a_tag_without_a_clip_is_an_error_and_the_engine_still_answers(engine, expected):
    from vllm import SamplingParams

    with refused("1 <.AUDIO.> tags but 0 audios"):
        greedy(engine, [[{"role": "user", "content": "What is <|AUDIO|>?"}]])
    with refused("without a clip"):
        engine.generate("What is <|AUDIO|>?", SamplingParams(max_tokens=2), use_tqdm=False)
    check(greedy(engine, expected[0][:4]), expected[1][:4])


def test_a_tag_that_an_answer_spells_is_text(engine, reference):
    chat = [
        {"role": "user", "content": [{"type": "audio", "audio": clip(1.0, 1)}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A <|AUDIO|> tag."},
        {"role": "user", "content": "Which?"},
    ]
    check(greedy(engine, [chat]), [reference(chat)])


def test_a_prompt_that_is_too_long_is_an_error_and_the_engine_still_answers(engine, expected):
    long = [{"role": "user", "content": [{"type": "audio", "audio": clip(95.0, i)} for i in range(12)]}]
    with refused("4096"):
        greedy(engine, [long])
    with refused("4096"):
        greedy(engine, [[{"role": "user", "content": "word " * 5000}]])
    check(greedy(engine, expected[0][:4]), expected[1][:4])


def test_a_faulty_clip_is_an_error_and_the_engine_still_answers(engine, expected):
    broken = clip(1.0, 0)
    broken[7] = float("nan")
    with refused("finite"):
        greedy(engine, [[{"role": "user", "content": [{"type": "audio", "audio": broken}]}]])
    check(greedy(engine, expected[0][:4]), expected[1][:4])


def test_options_that_prompts_do_not_have_are_refused(engine):
    chat = [[{"role": "user", "content": "Hello"}]]
    for options in (
        {"chat_template": "{{ messages }}"},
        {"add_generation_prompt": False},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    ):
        with refused(next(iter(options))):
            engine.chat(chat, use_tqdm=False, **options)


def test_probabilities_of_a_prompt_with_clips_are_given_and_the_engine_still_answers(engine, expected):
    outputs = greedy(engine, expected[0][:4], prompt_logprobs=1)
    assert [len(o.prompt_logprobs) for o in outputs] == [len(ids) for ids, _ in expected[1][:4]]
    check(greedy(engine, expected[0][:4]), expected[1][:4])


def test_turns_end_where_the_template_says(place, engine):
    ends = place.fresh.prompts.end_ids(place.fresh.llm.generation_config.eos_token_id)
    assert engine.llm_engine.renderer.get_eos_token_id() in ends
    outputs = greedy(engine, conversations(60))
    assert all(o.outputs[0].finish_reason == "length" or _ids(o)[-1] in ends for o in outputs)


@pytest.mark.parametrize("tokens", [16, 64])
def test_prefill_may_be_cut_inside_an_audio(place, expected, tokens):
    llm = start(place, max_num_batched_tokens=tokens, max_num_seqs=2)
    try:
        check(greedy(llm, expected[0][:30]), expected[1][:30])
    finally:
        stop(llm)


def test_prompt_settings_of_the_model_are_in_vllms_prompts(place, tmp_path):
    """``audio_tags``, ``audio_role``, ``system``: ids of `PromptBuilder`, with each slot expanded."""
    from dataclasses import replace

    from nemo_desta.core.folder import is_trained_name, save_folder
    from nemo_desta.hf import DestaProcessor

    prompt = replace(place.config.prompt, audio_tags=["<s>", "</s>"], audio_role="user", system="Listen.")
    config = replace(place.config, prompt=prompt)
    tensors = {n: t for n, t in place.fresh.state_dict().items() if is_trained_name(n)}
    folder = save_folder(tmp_path / "model", config, tensors, place.fresh.tokenizer)
    processor = DestaProcessor.from_pretrained(folder)
    chats = conversations(12)
    llm = start(place, folder)
    try:
        for output, chat in zip(greedy(llm, chats), chats, strict=True):
            inputs = processor.apply_chat_template(chat, tokenize=True)
            assert output.prompt_token_ids == held(inputs, processor)
    finally:
        stop(llm)


def test_the_demos_model_answers_as_in_transformers(demo_place):
    reference = _reference(answers_of_transformers(demo_place))
    chats = [chat for i, chat in enumerate(conversations(25)) if i % 25 not in (3, 4)]  # it has 2,048 positions
    expected = [reference(chat) for chat in chats]
    llm = start(demo_place, max_model_len=2048, limit_mm_per_prompt={"audio": {"count": 4, "length": 8 * 16_000}})
    try:
        check(greedy(llm, chats), expected)
    finally:
        stop(llm)


def test_another_llm_is_refused_at_the_start(place, tmp_path):
    from nemo_desta.testing.models import tiny_llm

    other = tiny_llm(tmp_path / "other", initializer_range=0.3, head_dim=64, max_position_embeddings=4096)
    with pytest.raises(Exception, match="is not what this projector was trained with"):
        start(place, hf_overrides={"llm": str(other)})
    torch.manual_seed(0)
    gc.collect()
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()
    assert os.environ["VLLM_PLUGINS"] == "nemo_desta"
