"""ALARM's projector: an adapter per encoder (`adapters`), then a fusion of their streams to one (`fusion`).

The released single-encoder models have one adapter; ALARM-CA has four adapters and cross-attention. There are no time
windows: the output has the adapters' frame rate, 25 vectors per second for a 50 Hz encoder.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nemo_desta.config import check_keys, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.perception.projector.adapters import Adapter
from nemo_desta.perception.projector.base import Encoders, Projector
from nemo_desta.perception.projector.fusion import CrossAttentionFusion, SumFusion
from nemo_desta.perception.projector.perceiver import PerceiverFusion
from nemo_desta.types import EncoderOutput

FUSIONS: dict[str, type[nn.Module]] = {
    "sum": SumFusion,
    "cross_attention": CrossAttentionFusion,
    "perceiver": PerceiverFusion,
}


class ConvProjector(Projector):
    """Adapters and fusion; the first encoder is the main stream."""

    def __init__(
        self,
        encoders: Encoders,
        output_size: int,
        *,
        adapter: Mapping[str, Any] | None = None,
        adapters: Mapping[str, Mapping[str, Any]] | None = None,
        fusion: str | Mapping[str, Any] = "sum",
        main: str | None = None,
        original_masks: bool = False,
        markers: bool = False,
        output_norm: bool = False,
        output_rms: float | None = None,
    ):
        """Build one adapter per encoder and their fusion. See `Projector` for the arguments that all projectors share.

        Args:
            adapter: knobs of every adapter: ``body, hidden_size, depth, norm, mix, project`` of `Adapter`.
            adapters: knobs by encoder name, which override ``adapter``: ``{"whisper": {"norm": "batch"}}`` is ALARM's.
            fusion: "sum", "cross_attention" (ALARM-CA), "perceiver" (ALARM-P, whose side encoders have the adapter
                ``{"body": "identity", "project": False}``), or a mapping with that as ``name`` and the fusion's
                knobs. With a single encoder there is no fusion: its adapter's stream is the output.
            main: the encoder whose stream attends to the others; the first one if None.
            original_masks: mask and round as ALARM was released, for parity; see `Adapter`.

        Raises:
            ConfigError: an unknown knob or fusion.
            ValueError: ``main`` or ``adapters`` name an unknown encoder; "sum" of streams of different frame rates.
        """
        super().__init__(encoders, output_size, markers=markers, output_norm=output_norm, output_rms=output_rms)
        self.reads_padding = original_masks
        main = main or next(iter(encoders))
        adapters = adapters or {}
        for name in (main, *adapters):
            if name not in encoders:
                raise ValueError(f"'{name}' is not an encoder of this projector.{nearest(name, encoders)}")
        names = [main, *(name for name in encoders if name != main)]
        self.adapters = nn.ModuleDict()
        for name in names:
            knobs = {**(adapter or {}), **adapters.get(name, {})}
            known = set(inspect.signature(Adapter).parameters) - {"num_taps", "width", "output_size", "original_masks"}
            check_keys(knobs, known, f"model.perception.projector.adapters.{name}")
            self.adapters[name] = Adapter(
                len(encoders[name].layer_ids),
                encoders[name].hidden_size,
                output_size,
                original_masks=original_masks,
                **knobs,
            )
        widths = {name: adapter.width for name, adapter in self.adapters.items()}
        self.fusion = _build_fusion(fusion, widths, output_size, original_masks)
        if isinstance(self.fusion, SumFusion):
            rates = {n: encoders[n].frame_grid.frame_rate / 2 ** self.adapters[n].halvings for n in names}
            if len(set(rates.values())) > 1:
                raise ValueError(f"streams of different frame rates cannot be added: {rates} per second")

    def project(
        self, features: dict[str, EncoderOutput], audio_lens: torch.Tensor, sampling_rate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Projector.project`."""
        streams = {
            name: adapter(features[name].layers, features[name].lens) for name, adapter in self.adapters.items()
        }
        return self.fusion(streams)

    def num_vectors(self, num_samples: int, sampling_rate: int) -> int:
        """See `Projector.num_vectors`."""
        frames = {
            name: adapter.num_frames(self.num_frames(name, num_samples, sampling_rate))
            for name, adapter in self.adapters.items()
        }
        return self.fusion.num_vectors(frames)


def _build_fusion(
    fusion: str | Mapping[str, Any], widths: dict[str, int], output_size: int, original_masks: bool
) -> nn.Module:
    knobs = {"name": fusion} if isinstance(fusion, str) else dict(fusion)
    kind = knobs.pop("name", "sum")
    if kind not in FUSIONS:
        raise ConfigError(f"unknown fusion '{kind}'.{nearest(kind, FUSIONS)}")
    known = set(inspect.signature(FUSIONS[kind]).parameters) - {"widths", "output_size", "original_masks"}
    check_keys(knobs, known, "model.perception.projector.fusion")
    if len(widths) == 1:
        return SumFusion(widths, output_size, original_masks=original_masks)
    return FUSIONS[kind](widths, output_size, original_masks=original_masks, **knobs)
