"""Encoders of 16 and 24 kHz in vLLM: its clips are those of `load_clip`, and the answers those of the decode loop."""

import gc

import numpy as np
import pytest

from nemo_desta.answering.clips import load_clip
from nemo_desta.answering.engine import ChatEngine
from nemo_desta.core.model import SpeechLM
from nemo_desta.testing.models import tiny_llm
from nemo_desta.testing.perception import tiny_muq, tiny_whisper
from tests.vllm_plugin.conftest import HEAD_SIZE, _place
from tests.vllm_plugin.test_chat_engine import answers

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

FILE_RATE, RATES = 44_100, (24_000, 16_000)


def noise(seed):
    return 0.1 * np.random.default_rng(seed).standard_normal(30_001).astype(np.float32)


def test_the_parser_of_a_request_and_that_of_a_loaded_clip_agree():
    from nemo_desta.vllm_plugin.processing import ClipParser

    for rates, shape in ((RATES, (16_327, 2)), (16_000, (10_885,))):
        clip = load_clip({"array": noise(0), "sampling_rate": FILE_RATE}, rates)
        given = {"audio": [(noise(0), FILE_RATE), clip]}
        found = ClipParser(rates, 10**6).parse_mm_data({"audio": given["audio"][:1]})["audio"].get(0)
        loaded = ClipParser(rates, 10**6).parse_mm_data({"audio": given["audio"][1:]})["audio"].get(0)
        again = ClipParser(rates, 10**6).parse_mm_data({"audio": [found]})["audio"].get(0)  # as vLLM does
        assert found.shape == shape and all(np.array_equal(one, clip.audio) for one in (found, loaded, again))


def test_answers_equal_those_of_the_decode_loop(tmp_path, monkeypatch):
    from vllm.distributed import cleanup_dist_env_and_memory

    from nemo_desta.vllm_plugin.chat import vllm_chat_engine

    for name, value in {"ENABLE_V1_MULTIPROCESSING": "0", "CPU_KVCACHE_SPACE": "1", "NO_USAGE_STATS": "1"}.items():
        monkeypatch.setenv(f"VLLM_{name}", value)
    tiny_llm(tmp_path / "llm", initializer_range=0.5, head_dim=HEAD_SIZE, max_position_embeddings=4096)
    encoders = {
        "whisper": {"path": tiny_whisper(tmp_path / "whisper", window_secs=2.0)},
        "muq": {"path": tiny_muq(tmp_path / "muq")},
    }
    parts = {"llm": {"path": str(tmp_path / "llm")}, "perception": {"encoders": encoders}}
    place = _place(tmp_path, parts)
    chats = [
        [{"role": "user", "content": "<|AUDIO|> What is it?", "audios": [{"array": one, "sampling_rate": FILE_RATE}]}]
        for one in (noise(1), noise(2)[:9_000], noise(3))
    ]
    limit = {"audio": {"count": 2, "length": 5 * RATES[0]}}
    engine = vllm_chat_engine(
        place.folder, enforce_eager=True, max_model_len=512, max_num_seqs=4, limit_mm_per_prompt=limit
    )
    try:
        found = answers(engine, chats, max_new_tokens=12)
    finally:
        engine._decoder.engine.engine_core.shutdown()
        gc.collect()
        cleanup_dist_env_and_memory()
    ours = ChatEngine(SpeechLM.from_pretrained(place.folder, device="cpu"))
    assert found == answers(ours, chats, max_new_tokens=12) and len({text for text, *_ in found}) > 1
