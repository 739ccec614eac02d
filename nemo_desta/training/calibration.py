"""Calibration: before the first step, the projector's input norm is set from the encoders' outputs of some clips.

Encoder features have large constant channels, which differ little between clips. With Whisper base, 7 to 23 % of the
power of a clip's mean frame tells clips apart; with every channel standardised it is 57 to 71 %. A short training gets
there by itself only late.
"""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nemo_desta.data.settings import DataSettings
from nemo_desta.errors import ConfigError
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector.base import Projector
from nemo_desta.training.feature_precompute import batches, list_clips, load_clip, padded
from nemo_desta.types import EncoderOutput

logger = logging.getLogger(__name__)


class Calibration(Callback):
    """Sets the projector's input norm on ``num_clips`` training clips, spread evenly over all of them.

    A run that starts from another projector keeps that one's norm; one that resumes needs no such callback.
    """

    def __init__(self, num_clips: int, data: DataSettings) -> None:
        self.num_clips, self.data = num_clips, data

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.config.perception.init_from is not None:
            return
        perception = pl_module.perception
        perception.projector.calibrate(self._features(perception, pl_module.prompts.audio_role))
        for parameter in perception.projector.parameters():  # every rank starts from the same numbers
            if trainer.world_size > 1:
                parameter.data.copy_(trainer.strategy.broadcast(parameter.data))

    def _features(self, perception: FusedPerception, audio_role: str | None) -> Iterator[dict[str, EncoderOutput]]:
        """The encoders' outputs of the clips, in batches; a clip that cannot be read is logged and left out."""
        rates, device = perception.audio_rates, next(perception.projector.parameters()).device
        train = dataclasses.replace(self.data, validation={})
        clips = list_clips(train, audio_role=audio_role, sampling_rate=perception.sampling_rate)
        files = sorted(clips, key=lambda file: (clips[file], str(file)))
        chosen = files[:: max(1, len(files) // self.num_clips)][: self.num_clips]
        logger.info("calibrating the projector's input norm on %d of %d clips", len(chosen), len(files))
        for some in batches(chosen, clips):
            loaded = [clip for clip in (load_clip(file, rates) for file in some) if clip is not None]
            if loaded:
                with torch.no_grad():
                    yield perception.encode(*padded(loaded, device))


def check_calibration(num_clips: int, projector: type[Any], strategy: str) -> None:
    """Refuse a calibration that cannot be done.

    Raises:
        ConfigError: a negative number, a projector without `Projector.calibrate`, a strategy that shards it.
    """
    if num_clips < 0:
        raise ConfigError(f"'callbacks.calibrate_clips' must be 0 (off) or more, found {num_clips}")
    if num_clips and getattr(projector, "calibrate", Projector.calibrate) is Projector.calibrate:
        raise ConfigError("this projector has no calibration: set callbacks.calibrate_clips=0")
    if num_clips and strategy not in ("auto", "ddp"):
        raise ConfigError(f"strategy '{strategy}' has no calibration: set callbacks.calibrate_clips=0")
