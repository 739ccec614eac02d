"""One tiny model in a model folder: as our own `SpeechLM`, and through transformers' auto classes."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoProcessor

import nemo_desta.hf  # noqa: F401  registers the classes
from nemo_desta.config import ModelConfig, parse
from nemo_desta.core.folder import is_trained_name, save_folder
from nemo_desta.core.model import SpeechLM
from nemo_desta.testing.models import tiny_config


def clip(num_samples, seed=0):
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


ONE = [{"role": "user", "content": "<|AUDIO|>\nWhat is it?", "audios": [clip(20_000)]}]
TWO = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "First <|AUDIO|>, then <|AUDIO|>?", "audios": [clip(70_001, 1), clip(1_600, 2)]},
]
TEXT = [{"role": "user", "content": "Hello there, who are you?"}]


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """``folder``: of the model. ``ours``: SpeechLM. ``model``, ``processor``: transformers'."""
    path = tmp_path_factory.mktemp("hf")
    # Wide initial weights: with transformers' own, every prompt gets the same answer.
    config = parse(ModelConfig, tiny_config(path / "parts", initializer_range=0.5))
    torch.manual_seed(1)
    fresh = SpeechLM.from_config(config)
    folder = path / "model"
    save_folder(folder, config, {n: t for n, t in fresh.state_dict().items() if is_trained_name(n)}, fresh.tokenizer)
    return SimpleNamespace(
        path=path,
        folder=folder,
        config=config,
        ours=SpeechLM.from_pretrained(folder, device="cpu"),
        model=AutoModel.from_pretrained(folder),
        processor=AutoProcessor.from_pretrained(folder),
    )


@pytest.fixture
def fresh(place):
    """A model of its own, for tests that change it."""
    return AutoModel.from_pretrained(place.folder)


@pytest.fixture
def inputs(place):
    """(conversations) -> the model's inputs."""
    return lambda *conversations, **how: place.processor.apply_chat_template(conversations, tokenize=True, **how)
