"""One tiny model in a model folder: as our own `SpeechLM`, and through transformers' auto classes."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoProcessor

import nemo_desta.hf  # noqa: F401  registers the classes
from nemo_desta.answering.audio_embeddings import embed_prompts
from nemo_desta.answering.engine import prepare
from nemo_desta.answering.sampling import Sampling
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
GREEDY = {"do_sample": False, "max_new_tokens": 8}


def new_tokens(model, inputs, **how):
    """The ids that are generated greedily, without the prompt's."""
    return model.generate(**inputs, **{**GREEDY, **how})[:, inputs["input_ids"].shape[1] :]


def our_logits(model, conversation):
    """Logits of a `SpeechLM`."""
    chat = prepare(model, conversation, Sampling())
    with torch.no_grad():
        spliced = embed_prompts(model, [(chat.ids, chat.clips)])
        return model(spliced.inputs_embeds, spliced.attention_mask.long())["logits"]


def write_model(path, *, lora=None, **llm):
    """A model folder below ``path`` and its config; ``lora``: settings of adapters, which get random weights."""
    # Wide initial weights: with transformers' own, every prompt gets the same answer.
    values = tiny_config(path / "parts", initializer_range=0.5, **llm)
    config = parse(ModelConfig, {**values, "llm": {**values["llm"], "lora": lora}})
    torch.manual_seed(1)
    model = SpeechLM.from_config(config)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if is_trained_name(name)}
    return save_folder(path / "model", config, tensors, model.tokenizer), config


def parts_of(path):
    """Where the frozen parts are that `write_model` made below ``path``."""
    encoders = {"whisper": str(path / "parts/whisper"), "beats": str(path / "parts/beats.pt")}
    return {"llm": str(path / "parts/llm"), "encoders": encoders}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """``folder``: of the model. ``ours``: SpeechLM. ``model``, ``processor``: transformers'."""
    path = tmp_path_factory.mktemp("hf")
    folder, config = write_model(path)
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


@pytest.fixture
def labelled(place, inputs):
    """(conversations) -> the model's inputs with labels: every token but audio and padding is supervised."""

    def make(*conversations):
        batch = inputs(*conversations, padding_side="right")
        ignored = (batch["attention_mask"] == 0) | (batch["input_ids"] == place.processor.audio_token_id)
        return {**batch, "labels": batch["input_ids"].masked_fill(ignored, -100)}

    return make


@pytest.fixture
def trainer(place, labelled, tmp_path):
    """(model) -> transformers' trainer over four conversations, with recomputed activations."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        learning_rate=0.01,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_checkpointing=True,
        remove_unused_columns=False,  # the collator makes the model's inputs
        report_to=[],
        use_cpu=True,
    )
    rows = {"train_dataset": [ONE, TWO, ONE, TWO], "eval_dataset": [ONE, TWO]}
    rows["data_collator"] = lambda found: labelled(*found)
    return lambda model: Trainer(model=model, args=arguments, processing_class=place.processor, **rows)
