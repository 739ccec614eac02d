"""Perception's config -> encoders, their shapes, projector, token counts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from nemo_desta.config import PerceptionConfig, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import AudioEncoder, EncoderShape, build_encoder, encoder_shape
from nemo_desta.perception.projector import Projector, build_projector
from nemo_desta.perception.resample import rates_below
from nemo_desta.sources import resolve_source
from nemo_desta.types import Rates, first_rate


def build_encoders(config: PerceptionConfig) -> dict[str, nn.Module]:
    """The encoders that the config uses by name, in its order."""
    return _each_encoder(config, partial(build_encoder, dtype=config.dtype))


def encoder_shapes(config: PerceptionConfig) -> dict[str, EncoderShape]:
    """The shapes of `build_encoders`; no weights are loaded."""
    return _each_encoder(config, encoder_shape)


def audio_rates(config: PerceptionConfig, encoders: Mapping[str, AudioEncoder | EncoderShape] | None = None) -> Rates:
    """The rates that clips are read at: the config's or the encoders' highest, and each lower one of an encoder.

    ``encoders``: if they are built; otherwise their configs are read, no weights.

    Raises:
        ConfigError: a limit that is no rate.
    """
    limit = config.sampling_rate
    if limit is not None and limit < 1:
        raise ConfigError(f"model.perception.sampling_rate is {limit}; it must be a rate in Hz, or null")
    own = [encoder.sampling_rate for encoder in (encoders or encoder_shapes(config)).values()]
    return rates_below(limit or max(own), own)


def build_projector_for(
    config: PerceptionConfig,
    encoders: Mapping[str, AudioEncoder | EncoderShape],
    output_size: int,
    *,
    output_rms: float | None = None,
) -> Projector:
    """The projector that the config names, for these encoders (or shapes)."""
    knobs = dict(config.projector)
    name = knobs.pop("name", "window")
    with _building("model.perception.projector"):
        return build_projector(knobs.pop("_target_", name), encoders, output_size, output_rms=output_rms, **knobs)


def token_counter(config: PerceptionConfig, output_size: int) -> Callable[[int], int]:
    """Samples of a clip at ``sampling_rate`` -> its vectors, as `FusedPerception.num_tokens`; no weights are loaded.

    ``output_size``: width of the LLM.
    """
    shapes = encoder_shapes(config)
    with torch.device("meta"):
        projector = build_projector_for(config, shapes, output_size)
    rate = first_rate(audio_rates(config, shapes))
    return partial(projector.num_tokens, sampling_rate=rate)  # a lambda cannot be pickled


def _each_encoder(config: PerceptionConfig, build: Callable[..., Any]) -> dict[str, Any]:
    found = {}
    for name, knobs in _used_encoders(config).items():
        with _building(f"model.perception.encoders.{name}"):
            found[name] = build(knobs)
    return found


@contextmanager
def _building(where: str) -> Iterator[None]:
    """Turn what a constructor raises for the values of a config into a `ConfigError` that names their section."""
    try:
        yield
    except (ConfigError, OSError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"'{where}' cannot be built: {detail}") from error


def _used_encoders(config: PerceptionConfig) -> dict[str, dict[str, Any]]:
    """The arguments of every encoder in use."""
    names = list(config.encoders) if config.use is None else list(config.use)
    if not names:
        raise ConfigError("'model.perception.encoders' is empty: at least one encoder is needed")
    used = {}
    for name in names:
        if name not in config.encoders:
            raise ConfigError(f"model.perception.use names '{name}'.{nearest(name, config.encoders)}")
        knobs = {"name": name, **config.encoders[name]}
        if isinstance(knobs.get("path"), str):
            knobs["path"] = resolve_source(knobs["path"])
        used[name] = knobs
    return used
