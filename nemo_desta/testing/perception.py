"""Small encoders with random weights in the real checkpoint formats, for tests and dry runs."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper import modeling_whisper

from nemo_desta.perception.encoders import (
    Beats,
    BeatsConfig,
    BeatsEncoder,
    Eat,
    EatConfig,
    FrozenEncoder,
    Muq,
    MuqConfig,
    WhisperEncoder,
)
from nemo_desta.perception.encoders.weights import SINGLE

WHISPER_FRAMES_PER_SEC = 50


def tiny_whisper(
    folder: str | Path,
    *,
    hidden_size: int = 32,
    num_layers: int = 3,
    num_heads: int = 2,
    num_mel_bins: int = 80,
    window_secs: float = 30.0,
    seed: int = 0,
) -> str:
    """Write a whole Whisper (a decoder is there too) in Hugging Face form; returns the folder."""
    config = WhisperConfig(
        d_model=hidden_size,
        encoder_layers=num_layers,
        encoder_attention_heads=num_heads,
        encoder_ffn_dim=2 * hidden_size,
        decoder_layers=1,
        decoder_attention_heads=num_heads,
        decoder_ffn_dim=2 * hidden_size,
        num_mel_bins=num_mel_bins,
        max_source_positions=round(window_secs * WHISPER_FRAMES_PER_SEC),
        max_target_positions=16,
        vocab_size=32,
        init_std=0.1,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=round(window_secs)).save_pretrained(folder)
    return str(folder)


def tiny_beats(
    path: str | Path,
    *,
    hidden_size: int = 48,
    num_layers: int = 2,
    num_heads: int = 4,
    embed_dim: int = 32,
    num_classes: int = 0,
    seed: int = 0,
) -> str:
    """Write a BEATs checkpoint in the public form, fine-tuned if ``num_classes``; returns the path."""
    config = BeatsConfig(
        encoder_layers=num_layers,
        encoder_embed_dim=hidden_size,
        encoder_ffn_embed_dim=2 * hidden_size,
        encoder_attention_heads=num_heads,
        embed_dim=embed_dim,
        finetuned_model=num_classes > 0,
        predictor_class=num_classes or BeatsConfig.predictor_class,
    )
    names = {number: f"class {number}" for number in range(num_classes)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Beats(config, label_dict=names or None)
    model.save_checkpoint(path)
    return str(path)


def tiny_muq(folder: str | Path, *, hidden_size: int = 32, num_layers: int = 2, seed: int = 0) -> str:
    """Write a MuQ in the public form; returns the folder."""
    config = MuqConfig(
        encoder_dim=hidden_size,
        encoder_depth=num_layers,
        conv_dim=4,
        intermediate_size=2 * hidden_size,
        num_attention_heads=2,
    )
    sizes = vars(config)
    conformer = ("intermediate_size", "num_attention_heads", "conv_depthwise_kernel_size", "rotary_embedding_base")
    stat = ("melspec_2048_mean", "melspec_2048_std")
    nested = {"w2v2_config": {key: sizes[key] for key in conformer}, "stat": {key: sizes[key] for key in stat}}
    _save(Muq, config, {key: sizes[key] for key in sizes.keys() - {*conformer, *stat}} | nested, folder, seed)
    return str(folder)


def tiny_eat(folder: str | Path, *, hidden_size: int = 32, num_layers: int = 2, seed: int = 0) -> str:
    """Write a pre-trained EAT in the public form; returns the folder."""
    config = EatConfig(embed_dim=hidden_size, depth=num_layers, num_heads=2, mlp_ratio=2.0)
    _save(Eat, config, vars(config), folder, seed)
    return str(folder)


def _save(kind: type[Muq] | type[Eat], config: MuqConfig | EatConfig, written: dict, folder: str | Path, seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "config.json").write_text(json.dumps(written))
    save_file({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, Path(folder) / SINGLE)


def tiny_encoders() -> dict[str, FrozenEncoder]:
    """A Whisper of windows of 2 s and a BEATs, in memory."""
    whisper = WhisperConfig(
        d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=64, max_source_positions=100
    )
    beats = BeatsConfig(
        encoder_layers=2, encoder_embed_dim=48, encoder_ffn_embed_dim=96, encoder_attention_heads=4, embed_dim=32
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "whisper": WhisperEncoder(modeling_whisper.WhisperEncoder(whisper), num_layers=3),
            "beats": BeatsEncoder(Beats(beats)),
        }


def tiny_speaking_whisper(folder: str | Path, *, window_secs: float = 2.0, languages: tuple[str, ...] = ()) -> str:
    """Write a whole Whisper with a tokenizer of single letters, which writes noise; returns the folder.

    ``languages``: codes such as "en"; none makes it an English-only model.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages)]
    special += ["<|transcribe|>", "<|translate|>", "<|notimestamps|>"]
    letters = ["\u0120", *map(chr, range(33, 127))]  # the first one is the space of a byte-level vocabulary
    ids = {token: i for i, token in enumerate(letters + special)}
    tiny_whisper(folder, window_secs=window_secs)
    config = WhisperConfig.from_pretrained(
        folder,
        vocab_size=len(ids),
        max_target_positions=32,
        init_std=0.5,
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    decoder = model.model.decoder
    decoder.embed_positions.weight.data *= 4  # otherwise it repeats one letter, whatever it hears
    decoder.layers[0].encoder_attn.out_proj.weight.data *= 8
    several = {
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in languages},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    }
    model.generation_config = GenerationConfig(
        pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        suppress_tokens=[ids[token] for token in special[1:]],
        return_timestamps=False,
        **(several if languages else {"is_multilingual": False}),
    )
    model.save_pretrained(folder)
    letters_only = Tokenizer(models.BPE(vocab={token: ids[token] for token in letters}, merges=[]))
    letters_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters_only, eos_token="<|endoftext|>", additional_special_tokens=special
    )
    tokenizer.save_pretrained(folder)
    return str(folder)
