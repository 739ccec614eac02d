"""The small language model: what ships works and is what its record says; the script trains a miniature."""

import json
import random

import pytest
import torch
from transformers import Qwen3ForCausalLM

from nemo_desta.demo import llm
from nemo_desta.demo.llm_data import EMPTY_THINK, OPEN_THINK, conversation, encode
from nemo_desta.demo.llm_gates import answer, measure

SIZE_LIMIT = 4_200_000
ASSETS = [pytest.param(llm.ASSET, id="instruct"), pytest.param(llm.REASONING_ASSET, id="reasoning")]


@pytest.fixture(scope="module")
def shipped():
    return llm.load()


@pytest.mark.parametrize("folder", ASSETS)
def test_shipped_files_are_small_and_match_their_checksum(folder):
    record = json.loads((folder / "training.json").read_text())
    assert llm.sha256(folder / "model.safetensors") == record["sha256"]
    assert all(path.stat().st_size < SIZE_LIMIT for path in folder.iterdir())
    assert record["gates"]["attributes"] >= llm.GATE and record["gates"]["text_cascade"] >= llm.GATE
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_shipped_model_passes_its_gates(shipped):
    result = measure(*shipped, count=40, seed=2, groups=("attributes", "text_cascade", "formats"))
    assert result["attributes"] >= 0.95 and result["text_cascade"] >= 0.95  # 40 prompts each: room for two slips
    assert result["formats"] and all(obeyed >= 0.95 for obeyed, _ in result["formats"].values())


@torch.no_grad()
def test_widened_heads_are_the_same_function():
    config = llm.model_config(llm.load()[1], head_size=16)
    config.num_hidden_layers, config.rms_norm_eps = 2, 1e-6
    torch.manual_seed(0)
    narrow = Qwen3ForCausalLM(config).eval()
    for name, weight in narrow.named_parameters():
        if "norm" in name:
            weight.uniform_(0.5, 2.0)
    wide = llm.widen_heads(narrow, 24).eval()
    ids = torch.randint(0, 1000, (2, 50))
    assert wide.config.head_dim == 24
    torch.testing.assert_close(wide(ids).logits, narrow(ids).logits, atol=1e-4, rtol=1e-4)


def test_shipped_reasoning_model_thinks_first_and_rewrites_reading_into_hearing():
    result = measure(*llm.load(llm.REASONING_ASSET), count=40, seed=2, reasoning=True, groups=("attributes",))
    assert result["attributes"] >= 0.9 and result["rephrase_heard"] >= 0.9  # 40 and 20 prompts: room for two slips


@pytest.mark.parametrize(
    ("template", "opening", "keywords"),
    [
        (llm.CHAT_TEMPLATE, "", {}),
        (llm.CHAT_TEMPLATE, EMPTY_THINK, {"enable_thinking": False}),
        (llm.REASONING_TEMPLATE, OPEN_THINK, {}),
    ],
)
def test_training_ids_are_the_template_rendering_and_only_answers_are_supervised(shipped, template, opening, keywords):
    tokenizer = shipped[1]
    rng = random.Random(4)
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        for _ in range(20):
            messages = conversation(rng, reasoning=opening == OPEN_THINK)
            if any(m["content"].startswith("<think>") for m in messages):
                continue
            ids, supervised = encode(messages, tokenizer, opening=opening)
            prompt = tokenizer.apply_chat_template(
                messages[:-1], add_generation_prompt=True, tokenize=False, **keywords
            )
            target = messages[-1]["content"] + "<|im_end|>"
            assert tokenizer.decode(ids) == prompt + target + "\n"
            answers = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
            expected = [target] if opening else answers
            assert tokenizer.decode([i for i, s in zip(ids, supervised, strict=True) if s]) == "".join(expected)
    finally:
        tokenizer.chat_template = before


def test_batched_answers_equal_single_ones(shipped):
    rng = random.Random(9)
    asked = [conversation(rng)[:1] for _ in range(6)]
    asked = [messages for messages in asked if messages[0]["role"] == "user"]
    together = answer(*shipped, asked)
    assert together == [answer(*shipped, [messages])[0] for messages in asked]


def test_the_same_seed_trains_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr(llm, "measure", lambda *args, **kwargs: {})
    monkeypatch.setattr(llm, "TOKENS_PER_BATCH", 256)
    encoded = llm.encoded_conversations
    monkeypatch.setattr(llm, "encoded_conversations", lambda *args, **mix: encoded(*args[:2], 64, **mix))
    texts = [conversation(random.Random(i)) for i in range(400)]
    monkeypatch.setattr(llm, "conversation", lambda rng: rng.choice(texts))  # the tokenizer's 12,000 texts
    sums = [llm.train(tmp_path / name, seed=3, steps=2)["sha256"] for name in ("a", "b")]
    other = llm.train(tmp_path / "c", seed=4, steps=2)["sha256"]
    assert sums[0] == sums[1] != other


@pytest.mark.slow
def test_a_miniature_learns_by_the_same_script(tmp_path):
    record = llm.train(tmp_path / "mini", steps=60)  # half a minute on one core
    assert record["steps"] == 60 and set(record["gates"]) >= {"attributes", "text_cascade", "yes_no"}
    model, tokenizer = llm.load(tmp_path / "mini")
    rows = [encode(conversation(random.Random(i)), tokenizer) for i in range(8)]
    losses = []
    for ids, supervised in rows:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        wanted = torch.tensor(ids[1:])[torch.tensor(supervised[1:])]
        losses.append(torch.nn.functional.cross_entropy(logits[torch.tensor(supervised[1:])], wanted).item())
    assert sum(losses) / len(losses) < 5.0  # ln(1200) = 7.1 before training
