"""The vLLM path without vLLM: `AudioFrontend` gives the same embeddings, `ChatEngine` the same answers.

vLLM needs a GPU. In its place stands an engine with the three methods that are used, over the real Hugging Face LLM.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_desta.answering.audio_embeddings import embed_prompts
from nemo_desta.answering.audio_frontend import AudioFrontend
from nemo_desta.answering.engine import ChatEngine, prepare
from nemo_desta.answering.sampling import Sampling, resolve_sampling
from nemo_desta.answering.vllm_decoder import INSTALL, VLLMDecoder, vllm_chat_engine
from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config


class StandInEngine:
    """Greedy text behind embeddings; ``burst`` tokens of every request per step. ``context``: where a request ends."""

    def __init__(self, llm, burst=1, context=None):
        self.llm, self.burst, self.context, self.requests, self.params = llm, burst, context, {}, []

    def add_request(self, request_id, prompt, params):
        assert request_id not in self.requests and prompt["prompt_embeds"].ndim == 2
        ids, given = prompt["prompt_token_ids"], prompt["prompt_is_token_ids"]
        assert len(ids) == len(given) == len(prompt["prompt_embeds"])
        assert all((token < self.llm.config.vocab_size) == bool(one) for token, one in zip(ids, given, strict=True))
        self.requests[request_id] = prompt["prompt_embeds"]
        self.params.append(params)

    def abort_request(self, request_ids):
        for request_id in request_ids:
            del self.requests[request_id]

    @torch.no_grad()
    def step(self):
        outputs = []
        for request_id, embeds in self.requests.items():
            new = []
            for _ in range(self.burst):
                new.append(int(self.llm(inputs_embeds=embeds[None]).logits[0, -1].argmax()))
                embeds = torch.cat([embeds, self.llm.get_input_embeddings()(torch.tensor(new[-1:]))])
            self.requests[request_id] = embeds
            outputs.append(
                SimpleNamespace(
                    request_id=request_id,
                    outputs=[SimpleNamespace(token_ids=new)],
                    finished=self.context is not None and len(embeds) >= self.context,
                )
            )
        for output in outputs:
            if output.finished:
                del self.requests[output.request_id]
        return outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model whose LLM says different things to different prompts."""
    root = tmp_path_factory.mktemp("vllm")
    config = tiny_config(root, template="thinking")
    llm = AutoModelForCausalLM.from_pretrained(config["llm"]["path"])
    with torch.no_grad():
        for parameter in llm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    llm.save_pretrained(config["llm"]["path"])
    torch.manual_seed(1)
    return DestaModel(config).save_pretrained(root / "model")


@pytest.fixture(scope="module")
def model(folder):
    return DestaModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def ears(folder):
    return AudioFrontend.from_pretrained(folder, device="cpu")


def chats():
    rng = np.random.default_rng(0)
    clips = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (16_000, 52_000, 9_000)]
    tags = [[0], [1, 2], []]
    return [
        [{"role": "user", "content": "<|AUDIO|>" * len(ids) + " What?", "audios": [clips[i] for i in ids]}]
        for ids in tags
    ]


def answers(engine, ready):
    ids = engine.add(ready)
    said = {chat_id: {True: "", False: ""} for chat_id in ids}
    while engine.num_active:
        for delta in engine.step():
            said[delta.chat_id][delta.thinking] += delta.text
    return [said[chat_id] for chat_id in ids]


def test_embeddings_are_those_of_the_whole_model(model, ears):
    prompts = [(chat.ids, chat.clips) for chat in (prepare(model, m, Sampling()) for m in chats())]
    ours, theirs = embed_prompts(ears, prompts), embed_prompts(model, prompts)
    assert torch.equal(ours.attention_mask, theirs.attention_mask)
    torch.testing.assert_close(ours.inputs_embeds, theirs.inputs_embeds, rtol=0, atol=0)


def test_the_llm_itself_is_not_loaded(model, ears):
    in_llm = sum(p.numel() for p in model.llm.parameters())
    table = model.embed_tokens.weight.numel()
    everything = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in ears.parameters()) == everything - in_llm + table


@pytest.mark.parametrize("burst", [1, 3])
def test_answers_are_those_of_the_decode_loop(model, ears, burst):
    sampling = Sampling(max_new_tokens=10)
    ready = [prepare(ears, m, sampling) for m in chats()]
    engine = StandInEngine(model.llm, burst)
    decoder = VLLMDecoder(engine, ears.embed_tokens, SimpleNamespace)
    assert answers(ChatEngine(ears, decoder=decoder), ready) == answers(ChatEngine(model), ready)
    assert not engine.requests, "what is over is given up"
    assert engine.params[0] == SimpleNamespace(
        temperature=0.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, seed=None, max_tokens=10
    )


def test_an_answer_that_the_engine_ends_has_the_finish_length(model, ears):
    chat = prepare(ears, chats()[0], Sampling(max_new_tokens=100))
    engine = StandInEngine(model.llm, context=chat.num_prompt_tokens + 3)
    ours = ChatEngine(ears, decoder=VLLMDecoder(engine, ears.embed_tokens, SimpleNamespace))
    ours.add([chat])
    deltas = [delta for _ in range(5) for delta in ours.step()]
    assert (deltas[-1].finish, deltas[-1].num_new_tokens, ours.num_active) == ("length", 3, 0)


def test_a_prompt_must_fit_the_engine_that_runs_the_llm(ears, monkeypatch):
    assert ears.context_length == 2048
    monkeypatch.setattr(ears, "engine_context", 40)
    assert ears.context_length == 40


def test_a_thinking_budget_is_kept_by_asking_anew_behind_the_forced_end(tmp_path_factory, model, ears):
    for one in (model, ears):  # a template that opens the thought
        one.prompts.tokenizer.chat_template = one.prompts.tokenizer.chat_template.replace(
            "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"
        )
    sampling = Sampling(max_new_tokens=12, max_thinking_tokens=4)
    ready = [prepare(ears, m, sampling) for m in chats()[:2]]
    engine = StandInEngine(model.llm)
    decoder = VLLMDecoder(engine, ears.embed_tokens, SimpleNamespace)
    ours = answers(ChatEngine(ears, decoder=decoder), ready)
    assert ours == answers(ChatEngine(model), ready)
    assert all("I give my answer now" in said[True] for said in ours)
    assert len(engine.params) == 4 and not engine.requests


def test_rows_leave_before_and_while_they_are_asked(model, ears):
    engine = StandInEngine(model.llm)
    decoder = VLLMDecoder(engine, ears.embed_tokens, SimpleNamespace)
    embeds = torch.randn(2, 5, 32)
    first, second = decoder.add(embeds, torch.ones(2, 5, dtype=torch.bool), [Sampling()] * 2)
    decoder.force(first, [5, 6])
    decoder.remove({first, 99})
    assert len(decoder) == 1 and len(engine.requests) == 1
    assert [key for key, _ in decoder.step()] == [second]


def test_lora_and_missing_vllm_are_said(ears, folder, model):
    config = parse(type(ears.config), {"llm": {"path": ears.config.llm.path, "lora": {"r": 4}}})
    with pytest.raises(ConfigError, match="trained LoRA"):
        AudioFrontend(config)
    with pytest.raises(ImportError, match="pip install vllm"):
        vllm_chat_engine(folder)
    assert "pip install vllm" in INSTALL


def test_rows_that_vllm_refuses_leave_nothing_behind(model, ears):
    class Full(StandInEngine):
        def add_request(self, request_id, prompt, params):
            if len(self.requests) == 2:
                raise ValueError("no room")
            super().add_request(request_id, prompt, params)

    engine = Full(model.llm)
    decoder = VLLMDecoder(engine, ears.embed_tokens, lambda **settings: settings)
    ready = [prepare(ears, chat, resolve_sampling(ears.generation_config)) for chat in chats()]
    chat_engine = ChatEngine(ears, decoder=decoder)
    with pytest.raises(ValueError, match="no room"):
        chat_engine.add(ready)
    assert len(decoder) == 0 and engine.requests == {} and chat_engine.num_active == 0
