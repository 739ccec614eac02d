"""A tiny LLM with random weights and a tokenizer of single characters, and a corpus of short noises."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `from_pretrained` reads it: Qwen3 of random weights whose answers are printable characters."""
    folder = tmp_path_factory.mktemp("llm") / "tiny-qwen3"
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(CHARACTERS)}, merges=[]))
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", chat_template=TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<think>", "</think>"]})
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.2,  # the usual 0.02 makes every token equally likely whatever the prompt
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A data root with ``m.jsonl``: 12 rows over 10 good clips, ``c3`` without file, ``c7`` cut in half."""
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        audio = f"audio/c{i}.flac"
        row = {"id": f"c{i}", "source": "toy", "split": "train", "audio": audio, "duration": 0.3}
        attributes = {"gender": "female" if i % 2 else "male"}
        rows.append({**row, "domain": "speech", "transcript": f"word {i}", "attributes": attributes})
        if i != 3:
            soundfile.write(tmp_path / audio, rng.uniform(-0.5, 0.5, 2400), 8000)
    whole = (tmp_path / "audio/c7.flac").read_bytes()
    (tmp_path / "audio/c7.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path
