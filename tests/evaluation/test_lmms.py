"""The plugin for lmms-eval, against a stand-in of the two names that it takes from the harness."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config

RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lmms")
    torch.manual_seed(0)
    return DestaModel(tiny_config(root)).save_pretrained(root / "model")


@pytest.fixture
def adapter(folder, monkeypatch):
    """As the harness loads it: by the plugin's table of names."""
    base = ModuleType("lmms_eval.api.model")
    base.lmms = type("lmms", (), {"__init__": lambda self: setattr(self, "task_dict", {})})
    for name, module in {"lmms_eval": ModuleType("lmms_eval"), "lmms_eval.api": ModuleType("lmms_eval.api"),
                         "lmms_eval.api.model": base}.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    plugin = "nemo_desta.evaluation.lmms.models"
    monkeypatch.delitem(sys.modules, f"{plugin}.desta", raising=False)
    ((name, kind),) = importlib.import_module(plugin).AVAILABLE_MODELS.items()
    yield getattr(importlib.import_module(f"{plugin}.{name}"), kind)(str(folder), device="cpu", batch_size="4")
    sys.modules.pop(f"{plugin}.desta", None)


def request(adapter, doc, text="What is it?", **settings):
    docs = adapter.task_dict.setdefault("task", {}).setdefault("test", [])
    docs.append(doc)
    return SimpleNamespace(args=(text, settings, lambda d: d["audios"], len(docs) - 1, "task", "test"))


def clip(seed, secs=0.5, rate=RATE):
    return {"array": 0.1 * np.random.default_rng(seed).standard_normal(int(secs * rate)), "sampling_rate": rate}


def test_answers_come_in_order_and_are_the_models_own(adapter, folder):
    asked = [
        request(adapter, {"audios": [clip(0)]}, max_new_tokens=5),
        request(adapter, {"audios": [clip(1, rate=22_050), clip(2)]}, max_new_tokens=7, until=["\n\n"]),
        request(adapter, {"audios": []}, "Only text <|AUDIO|>.", max_new_tokens=5),
        request(adapter, {"audios": [clip(3)]}, max_new_tokens=5),
    ]
    said = adapter.generate_until(asked)
    model = DestaModel.from_pretrained(folder, device="cpu")
    expected = []
    for one in asked:
        text, settings, visual, i, *_ = one.args
        clips = visual(adapter.task_dict["task"]["test"][i])
        message = {"role": "user", "content": "<|AUDIO|>" * len(clips) + ("\n" if clips else "") + text}
        message["content"] = message["content"].replace(" <|AUDIO|>.", " .")
        if clips:
            message["audios"] = clips
        stop = settings.get("until", [])
        expected.append(model.chat([message], max_new_tokens=settings["max_new_tokens"], temperature=0.0, stop=stop))
    assert said == expected


def test_what_is_not_offered_says_so(adapter):
    with pytest.raises(NotImplementedError, match="log-likelihoods"):
        adapter.loglikelihood([])
    with pytest.raises(NotImplementedError, match="multi-round"):
        adapter.generate_until_multi_round([])
