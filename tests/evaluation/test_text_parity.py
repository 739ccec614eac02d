"""The text probe: nothing differs for a frozen LLM, and something does when it was touched."""

import pytest
import torch

from nemo_desta.evaluation import text_parity as text_parity_module
from nemo_desta.evaluation.ifeval import check
from nemo_desta.evaluation.settings import TextSettings
from nemo_desta.evaluation.text_parity import INSTRUCTIONS, instruction_prompts, text_parity
from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config

SETTINGS = TextSettings(prompts=4, texts=3)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(text_parity_module, "MAX_NEW_TOKENS", 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return DestaModel(tiny_config(tmp_path_factory.mktemp("model"))).eval()


def test_a_frozen_llm_is_exactly_the_same(model):
    found = text_parity(model, SETTINGS, progress=False)
    assert found["untouched"] is True
    assert found["largest_logit_difference"] == 0.0 and found["answers_that_differ"] == 0
    assert found["perplexity"]["difference"] == 0.0 and found["perplexity"]["model"] > 1.0
    assert found["passed"]["model"] == found["passed"]["bare"]
    assert found["sentence"].endswith("Exactly the same.")


def test_one_changed_weight_is_seen(model):
    weight = model.llm.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight[0, 0] += 0.5
        found = text_parity(model, SETTINGS, progress=False)
        weight[0, 0] -= 0.5
    assert found["untouched"] is False
    assert found["largest_logit_difference"] > 0.0 and found["perplexity"]["difference"] != 0.0
    assert "NOT the same" in found["sentence"]


def test_every_instruction_is_a_kind_that_can_be_obeyed_and_broken():
    obeyed = {
        "Use lowercase letters only.": ("rain falls.", "Rain falls."),
        "Use capital letters only.": ("RAIN FALLS.", "Rain falls."),
        "Do not use any commas.": ("Rain falls.", "Rain, falls."),
        "Write at least 30 words.": ("rain " * 30, "rain " * 29),
        "Write fewer than 20 words.": ("rain " * 19, "rain " * 20),
        "Give a title in double angle brackets, such as <<title>>.": ("<<Rain>> It falls.", "Rain. It falls."),
        "Put the whole answer between double quotation marks.": ('"Rain falls."', "Rain falls."),
        "End with the sentence: That is all.": ("Rain. That is all.", "That is all. Rain"),
        "Use the word light.": ("A light rain.", "A rain."),
        "Do not use the word and.": ("Rain, wind.", "Rain and wind."),
    }
    for wish, kind, kwargs in INSTRUCTIONS:
        good, bad = obeyed[wish]
        assert check(kind, kwargs, good), wish
        assert not check(kind, kwargs, bad), wish
    assert len({text for text, *_ in instruction_prompts(50)}) == 50
