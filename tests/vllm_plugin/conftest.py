"""One tiny model whose LLM has a head size that vLLM's CPU backend knows, and conversations for it."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nemo_desta.config import ModelConfig, parse
from nemo_desta.core.folder import is_trained_name, save_folder
from nemo_desta.core.model import SpeechLM
from nemo_desta.testing.models import tiny_config

RATE = 16_000
HEAD_SIZE = 64


def clip(secs, seed):
    """(S,) float32 noise."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(secs * RATE))).astype(np.float32)


def wav(samples):
    """The bytes of a file that holds exactly these samples."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def whole(text):
    """Without the bytes of a character that the token limit cut, which vLLM leaves out."""
    return text.rstrip("\ufffd").strip()


def openai_message(message):
    """One of our messages, whose content is parts, as a client of OpenAI's API writes it."""
    if isinstance(message["content"], str):
        return message
    parts = []
    for number, part in enumerate(message["content"]):
        if part["type"] == "audio":
            data = base64.b64encode(wav(part["audio"])).decode()
            by_url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
            inline = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
            part = by_url if number % 2 else inline
        parts.append(part)
    return {**message, "content": parts}


def conversations(count):
    """No clip, one or several, 0.1 s to 95 s; system messages, earlier turns, untagged and tagged places."""
    rng = np.random.default_rng(7)
    usual, found = (0.1, 0.3, 0.9, 1.7, 2.0, 2.3, 4.1, 7.7), []
    questions = ("What is it?", "Who speaks?", "Say what you hear.", "And the mood?", "Describe the sound.")
    for number in range(count):
        secs = [float(rng.choice(usual)) for _ in range(int(rng.integers(0, 4)))]
        if number % 25 == 3:
            secs = [95.0]
        if number % 25 == 4:
            secs = [30.0, 0.1]
        parts = [{"type": "audio", "audio": clip(s, 100 * number + i)} for i, s in enumerate(secs)]
        text = {"type": "text", "text": str(rng.choice(questions))}
        content = [*parts, text] if number % 3 else [text, *parts]
        chat = [{"role": "user", "content": content if parts else text["text"]}]
        if number % 4 == 1:
            earlier = [{"type": "audio", "audio": clip(0.7, 100 * number + 50)}, {"type": "text", "text": "First?"}]
            chat = [{"role": "user", "content": earlier}, {"role": "assistant", "content": "A bell."}, *chat]
        if number % 5 == 2:
            chat = [{"role": "system", "content": "Be brief."}, *chat]
        found.append(chat)
    return found


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """``folder``: of the model. ``path``: where its parts are. ``config``: its settings. ``fresh``: the model."""
    path = tmp_path_factory.mktemp("vllm")
    # Wide initial weights: with transformers' own, every prompt gets the same answer.
    parts = tiny_config(path / "parts", initializer_range=0.5, head_dim=HEAD_SIZE, max_position_embeddings=4096)
    return _place(path, parts)


@pytest.fixture(scope="session")
def demo_place(tmp_path_factory):
    """As ``place``, over the LLM and the encoders that ship with the package."""
    assets = "package:demo/assets"
    files = {"whisper": f"{assets}/encoders/whisper", "beats": f"{assets}/encoders/beats.pt"}
    encoders = {name: {"name": name, "path": file} for name, file in files.items()}
    perception = {"encoders": encoders, "projector": {"name": "window", "output_norm": True}}
    return _place(tmp_path_factory.mktemp("demo"), {"llm": {"path": f"{assets}/llm"}, "perception": perception})


def _place(path, parts):
    config = parse(ModelConfig, parts)
    torch.manual_seed(1)
    fresh = SpeechLM.from_config(config)
    folder = path / "model"
    save_folder(folder, config, {n: t for n, t in fresh.state_dict().items() if is_trained_name(n)}, fresh.tokenizer)
    return SimpleNamespace(path=path, folder=folder, config=config, fresh=fresh)


@pytest.fixture(scope="session")
def theirs(place):
    """(our messages, number of tokens) -> the processor, its inputs and the greedy new ids (1, new) of the class of
    transformers."""
    return answers_of_transformers(place)


def answers_of_transformers(place):
    from nemo_desta.hf import DestaForConditionalGeneration, DestaProcessor

    model = DestaForConditionalGeneration.from_pretrained(place.folder, dtype="float32")
    processor = DestaProcessor.from_pretrained(place.folder)

    def run(messages, max_new_tokens):
        inputs = processor.apply_chat_template(messages, tokenize=True)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        return processor, inputs, ids[:, inputs["input_ids"].shape[1] :]

    return run
