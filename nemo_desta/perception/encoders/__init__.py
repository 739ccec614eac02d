"""Frozen audio encoders: a common protocol, a registry, Whisper, BEATs, MuQ and EAT."""

from nemo_desta.perception.encoders.base import AudioEncoder, EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.beats import BeatsEncoder
from nemo_desta.perception.encoders.beats_model import Beats, BeatsConfig
from nemo_desta.perception.encoders.eat import EatEncoder
from nemo_desta.perception.encoders.eat_model import Eat, EatConfig
from nemo_desta.perception.encoders.muq import MuqEncoder
from nemo_desta.perception.encoders.muq_model import Muq, MuqConfig
from nemo_desta.perception.encoders.registry import (
    build_encoder,
    encoder_names,
    encoder_shape,
    feature_files,
    register_encoder,
)
from nemo_desta.perception.encoders.whisper import WhisperEncoder

__all__ = [
    "AudioEncoder",
    "Beats",
    "BeatsConfig",
    "BeatsEncoder",
    "Eat",
    "EatConfig",
    "EatEncoder",
    "EncoderShape",
    "FrozenEncoder",
    "Muq",
    "MuqConfig",
    "MuqEncoder",
    "WhisperEncoder",
    "build_encoder",
    "encoder_names",
    "encoder_shape",
    "feature_files",
    "register_encoder",
    "resolve_layer_ids",
]
