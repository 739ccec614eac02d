"""Every key of two training configs is changed: no check may end in a traceback."""

import logging
import random
import warnings

import pytest
from omegaconf import OmegaConf

from nemo_desta.training.fit import fit
from tests.fuzz.settings import changes, tracebacks

#: Changes of the fast test, drawn from both configs.
FEW = 40
#: ``strategy``: the trainer has its own copy.
KEPT = ("check", "strategy")


def check(settings):
    fit(OmegaConf.create(settings))


@pytest.fixture(scope="module")
def bases(workplace):
    """Both configs, over tiny parts and rows on disk; the demo's has a validation set and LoRA."""
    valid = workplace.folder / "valid"
    item = {"type": "desta", "rows": str(valid / "rows.jsonl"), "weight": 1.0, "audio_roots": {"default": str(valid)}}
    found = {}
    for name in ("desta25", "demo"):
        settings = OmegaConf.to_container(workplace.config("mutants", config=name), resolve=True)
        settings["data"]["validation_ds"]["datasets"] = {"tiny": {"input_cfg": [item]}} if name == "demo" else {}
        settings["model"]["llm"]["lora"] = {"r": 4, "target_modules": ["q_proj"]} if name == "demo" else None
        found[name] = {**settings, "check": True}
    return found


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_a_sample_of_changed_configs_ends_in_no_traceback(bases):
    pairs = [(name, change) for name, base in bases.items() for change in changes(base, but=KEPT)]
    drawn = random.Random(0).sample(pairs, FEW)
    for name, base in bases.items():
        assert tracebacks(check, base, [change for of, change in drawn if of == name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["desta25", "demo"])
def test_no_changed_config_ends_in_a_traceback(bases, name, capsys):
    tried = list(changes(bases[name], but=KEPT))
    bad = tracebacks(check, bases[name], tried)
    with capsys.disabled():
        print(f"\n{name}: {len(tried)} changed configs, {len(bad)} tracebacks")
    assert len(tried) > 1000 and bad == []
