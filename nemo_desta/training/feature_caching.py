"""The feature cache in training: given to the model when its parts are ready, and filled before the first step."""

import logging

import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from nemo_desta.data.settings import DataSettings
from nemo_desta.perception.feature_cache import FeatureCache
from nemo_desta.training.feature_precompute import list_clips, precompute

logger = logging.getLogger(__name__)


class FeatureCaching(Callback):
    """Every process reads and writes the folder itself, whatever the strategy; nothing is exchanged between them."""

    def __init__(self, cache: FeatureCache, data: DataSettings) -> None:
        self.cache, self.data = cache, data

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        perception = pl_module.perception
        if perception is not None:  # None: a later pipeline stage
            perception.feature_cache = self.cache
        if not self.cache.settings.precompute:
            return
        holders = self._holders(trainer, here=perception is not None)
        if perception is not None:
            role, rate = pl_module.prompts.audio_role, perception.sampling_rate
            clips = list_clips(self.data, audio_role=role, sampling_rate=rate)
            device = next(perception.projector.parameters()).device
            rank, num_ranks = holders.index(trainer.global_rank), len(holders)
            count = precompute(perception, clips, device=device, rank=rank, num_ranks=num_ranks)
            logger.info("feature cache: %d clips encoded by this process", count)
            self.cache.num_hits = self.cache.num_encoded = 0  # the summary is of the training
        trainer.strategy.barrier()

    def _holders(self, trainer: Trainer, *, here: bool) -> list[int]:
        """The ranks of this machine that have encoders: they share the clips. Each machine fills its own folder."""
        if trainer.world_size == 1:
            return [0]
        found = [None] * trainer.world_size
        dist.all_gather_object(found, (trainer.node_rank, here))
        return [rank for rank, (node, holds) in enumerate(found) if holds and node == trainer.node_rank]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            logger.info(self.cache.summary())
