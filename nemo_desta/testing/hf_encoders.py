"""Tiny audio encoders of transformers with random weights, one per architecture, in the form of their public files."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_MAPPING

#: Convolutions of wav2vec 2.0, narrow: 400 samples to the first frame, 320 to each further one.
CONV: dict[str, Any] = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
WHISPER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
    "max_source_positions": 100,
}
PARAKEET: dict[str, Any] = {"num_mel_bins": 80, "subsampling_conv_channels": 8, "conv_kernel_size": 5}
DAC: dict[str, Any] = {"encoder_hidden_size": 8, "downsampling_ratios": [2, 8, 8, 15], "codebook_dim": 16}
SMALL_LLM: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
}

#: Model type -> settings of its config, and its feature extractor.
TINY: dict[str, tuple[dict[str, Any], str]] = {
    "wav2vec2": ({**SIZES, **CONV}, "wave"),
    "wav2vec2_layer_norm": ({**SIZES, **CONV, "feat_extract_norm": "layer", "do_stable_layer_norm": True}, "wave"),
    "hubert": ({**SIZES, **CONV}, "wave"),
    "wavlm": ({**SIZES, **CONV}, "wave"),
    "data2vec-audio": ({**SIZES, **CONV, "num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 5}, "wave"),
    "unispeech-sat": ({**SIZES, **CONV}, "wave"),
    "wav2vec2-conformer": ({**SIZES, **CONV, "conv_depthwise_kernel_size": 5}, "wave"),
    "sew": (
        {
            **SIZES,
            "conv_dim": (8,) * 13,
            "squeeze_factor": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        "wave",
    ),
    "wav2vec2-bert": ({**SIZES, "conv_depthwise_kernel_size": 5}, "seamless"),
    "whisper": (
        {
            **WHISPER,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 64,
            "vocab_size": 32,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "decoder_start_token_id": 1,
        },
        "whisper",
    ),
    "qwen2_audio_encoder": (WHISPER, "whisper"),
    "voxtral_encoder": (
        {
            **{k: v for k, v in WHISPER.items()},
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        "whisper",
    ),
    "audioflamingo3_encoder": (
        {**WHISPER, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64},
        "whisper",
    ),
    "glmasr_encoder": ({**SIZES, "num_mel_bins": 80, "num_key_value_heads": 4}, "whisper"),
    "parakeet_encoder": ({**SIZES, **PARAKEET}, "parakeet"),
    "lasr_encoder": ({**SIZES, "num_mel_bins": 80, "subsampling_conv_channels": 8, "conv_kernel_size": 4}, "lasr"),
    "moonshine": (
        {
            "hidden_size": 32,
            "encoder_num_hidden_layers": 3,
            "decoder_num_hidden_layers": 1,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": 64,
            "pad_head_dim_to_multiple_of": None,
        },
        "wave_plain",
    ),
    "pe_audio_encoder": ({**SIZES, "num_key_value_heads": 4, "head_dim": 8, "dac_config": DAC}, "pe"),
}


def tiny_hf_encoder(folder: str | Path, name: str, *, seed: int = 0) -> str:
    """Write the model ``name`` of `TINY` and its feature extractor; returns the folder."""
    settings, extractor = TINY[name]
    config = CONFIG_MAPPING[name.removesuffix("_layer_norm")](**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODEL_MAPPING[type(config)](config)
        for parameter in model.parameters():  # larger than transformers' start, so that frames differ
            if parameter.dim() > 1:
                parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    feature_extractor(extractor).save_pretrained(folder)
    return str(folder)


def feature_extractor(name: str) -> Any:
    """The extractor that `TINY` names; Whisper's has a window of 2 s."""
    if name == "wave":
        return transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    if name == "wave_plain":
        return transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    if name == "seamless":
        return transformers.SeamlessM4TFeatureExtractor(padding_value=1)
    if name == "whisper":
        return transformers.WhisperFeatureExtractor(chunk_length=2)
    if name == "parakeet":
        return transformers.ParakeetFeatureExtractor(feature_size=80)
    if name == "lasr":
        return transformers.LasrFeatureExtractor(feature_size=80)
    return transformers.PeAudioFeatureExtractor(hop_length=1920)
