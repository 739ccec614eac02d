"""Frozen audio encoders: a common protocol, a registry, Whisper and BEATs."""

from nemo_desta.perception.encoders.base import AudioEncoder, EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.beats import BeatsEncoder
from nemo_desta.perception.encoders.beats_model import Beats, BeatsConfig
from nemo_desta.perception.encoders.registry import build_encoder, encoder_names, encoder_shape, register_encoder
from nemo_desta.perception.encoders.whisper import WhisperEncoder

__all__ = [
    "AudioEncoder",
    "Beats",
    "BeatsConfig",
    "BeatsEncoder",
    "EncoderShape",
    "FrozenEncoder",
    "WhisperEncoder",
    "build_encoder",
    "encoder_names",
    "encoder_shape",
    "register_encoder",
    "resolve_layer_ids",
]
