"""Small stand-ins for tests and examples: tokenizers with real chat templates, and a folder of rows with wav files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from nemo_desta.data.rows import Row

_CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3: an assistant's think block is left out of the history, and thinking can be switched off.
_THINKING = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n"
    "{%- if m.role == 'assistant' %}{{ '\n' + m.content.split('</think>')[-1].lstrip('\n') }}"
    "{%- else %}{{ '\n' + m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '\n<think>\n\n</think>\n\n' }}"
    "{%- else %}{{ '\n' }}{% endif %}{% endif %}"
)
# Like Llama 3: begins the text itself, trims contents, and has a header per message.
_LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{%- for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{% endif %}"
)
TEMPLATES = {"chatml": _CHATML, "thinking": _THINKING, "llama3": _LLAMA3}
_SPECIAL = {
    "chatml": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "thinking": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"],
}
_EOS = {"chatml": "<|im_end|>", "thinking": "<|im_end|>", "llama3": "<|end_of_text|>"}
_TEXT = ["What can be heard in this recording?", "A dog barks twice while a calm voice counts from one to seven."]


def tiny_tokenizer(template: str = "chatml", pad: str = "own", vocab_size: int = 400) -> Any:
    """A byte-level BPE tokenizer made on the spot.

    Args:
        template: "chatml", "thinking" (like Qwen3) or "llama3".
        pad: "own" (a pad token), "eos" (pad is eos) or "none" (no pad token, as Llama 3.1).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [*_SPECIAL[template], *(["<pad>"] if pad == "own" else [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT * 20, trainer)
    if template == "thinking":
        tokenizer.add_tokens(["<think>", "</think>"])  # as in Qwen3: in the vocabulary, not special
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_EOS[template],
        bos_token="<|begin_of_text|>" if template == "llama3" else None,
        pad_token={"own": "<pad>", "eos": _EOS[template], "none": None}[pad],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATES[template]
    return fast


def character_tokenizer() -> Any:
    """A tokenizer of ChatML whose tokens are the printable ASCII characters, the line feed and the special ones."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = ["\n", *(chr(code) for code in range(32, 127))]
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    plain.decoder = decoders.Fuse()
    template = TEMPLATES["chatml"].replace("{%-", "{%")  # keeps the white space of what a test puts before it
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", chat_template=template)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<think>", "</think>"]})
    return fast


def tiny_rows(folder: str | Path, num_rows: int = 12, *, seed: int = 0, durations: bool = True) -> Path:
    """Write ``num_rows`` rows with one tone of 0.2 to 2 s each; returns the JSONL file, whose folder is the root."""
    folder = Path(folder)
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        seconds = float(rng.integers(2, 21)) / 10
        audio = write_tone(folder / "wavs" / f"{number:03d}.wav", seconds, pitch_hz=200 + 10 * number)
        words = " ".join(["a low tone"] * int(rng.integers(1, 6)))
        rows.append(tiny_row(f"row-{number:03d}", str(audio.relative_to(folder)), f"I hear {words}."))
        if durations:
            rows[-1]["messages"][-1]["audios"][0]["duration"] = seconds
    return write_jsonl(folder / "rows.jsonl", rows)


def tiny_row(row_id: str, audio: str | None, response: str = "A tone.", text: str | None = None) -> Row:
    """One row as in DeSTA-AQA; ``audio=None`` makes a text-only row."""
    user: dict[str, Any] = {"role": "user", "content": "What can be heard?"}
    if audio is not None:
        user = {
            "role": "user",
            "content": f"<|AUDIO|>\n{user['content']}",
            "audios": [{"audio": audio, "text": text}],
        }
    return {
        "id": row_id,
        "dataset": "tones",
        "seed_description": "[00:00-00:01] (Sound class: tone)",
        "prompt": "What can be heard?",
        "messages": [{"role": "system", "content": "Focus on the audio."}, user],
        "response": response,
    }


def write_tone(path: Path, seconds: float, *, pitch_hz: float = 220.0, sampling_rate: int = 16_000) -> Path:
    """A quiet 16-bit sine as wav."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * pitch_hz * time), sampling_rate, subtype="PCM_16")
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def with_flac_length(data: bytes, num_samples: int) -> bytes:
    """The bytes of a FLAC file whose header says another length; 0: it does not say one."""
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | num_samples
    return data[:18] + packed.to_bytes(8, "big") + data[26:]
