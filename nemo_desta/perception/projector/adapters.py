"""ALARM's adapters: from one encoder's layers to one stream of frames, at half the frame rate or the same.

Letters: N encoder layers, B clips, T frames, C encoder width, H adapter width, D LLM width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.perception.masks import is_valid, zero_beyond

BODIES = ("downsampler", "mlp", "identity")


class Adapter(nn.Module):
    """Softmax mix of the layers -> body -> Linear to the LLM's width.

    Padding is zeroed before every convolution and excluded from every norm, so a clip in a batch equals the clip alone
    (in training a BatchNorm still couples the clips of a batch; its running statistics are of real frames only).
    ``original_masks`` is ALARM as released: padding leaks into a clip's last frames and into the BatchNorm, and an odd
    last frame is cut.

    An adapter whose parameters are all frozen stays in eval mode, so that its BatchNorm does not change.
    """

    def __init__(
        self,
        num_taps: int,
        width: int,
        output_size: int,
        *,
        body: Literal["downsampler", "mlp", "identity"] = "downsampler",
        hidden_size: int = 1024,
        depth: int = 1,
        norm: Literal["layer", "batch"] = "layer",
        mix: Literal["before", "after"] = "before",
        project: bool = True,
        original_masks: bool = False,
    ):
        """Build one adapter.

        Args:
            num_taps: N.
            width: C.
            output_size: D.
            body: "downsampler" halves the frame rate ``depth`` times, "mlp" and "identity" keep it.
            hidden_size: H.
            norm: after each convolution; ALARM has "batch" for Whisper and "layer" for the others.
            mix: the layers "before" one body, or "after" a body for each of them.
            project: False leaves out the last Linear, for a fusion that reads the body's own width.

        Raises:
            ValueError: an unknown body, norm or mix.
        """
        super().__init__()
        for name, value, known in (
            ("body", body, BODIES),
            ("norm", norm, ("layer", "batch")),
            ("mix", mix, ("before", "after")),
        ):
            if value not in known:
                raise ValueError(f"adapter {name} is {value!r}; known: {', '.join(known)}")
        self.original_masks = original_masks
        self.mix_first = mix == "before"
        self.layer_logits = nn.Parameter(torch.zeros(num_taps)) if num_taps > 1 else None
        self.bodies = nn.ModuleList(
            [
                _build_body(body, width, hidden_size, depth, norm, original_masks)
                for _ in range(1 if self.mix_first else num_taps)
            ]
        )
        self.halvings = depth if body == "downsampler" else 0
        body_width = width if body == "identity" else hidden_size
        self.width = output_size if project else body_width
        self.output = nn.Linear(body_width, output_size) if project else nn.Identity()

    def forward(self, layers: Sequence[torch.Tensor], lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """N tensors (B, T, C), lens (B,) -> (B, T', width), lens'; frames beyond lens' have no meaning."""
        dtype = next((p.dtype for p in self.parameters()), torch.float32)
        longest = int(lens.max())
        taps = [layer[:, :longest].to(dtype) for layer in layers]
        if not self.original_masks:
            taps = [zero_beyond(tap, lens) for tap in taps]
        if self.mix_first:
            out, new_lens = self.bodies[0](self._mix(taps), lens)
        else:
            outs = [body(tap, lens) for body, tap in zip(self.bodies, taps, strict=True)]
            out, new_lens = self._mix([out for out, _ in outs]), outs[0][1]
        return self.output(out), new_lens

    def train(self, mode: bool = True) -> "Adapter":
        """Train mode, unless all parameters are frozen."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def num_frames(self, frames: int) -> int:
        """Frames out for ``frames`` in."""
        for _ in range(self.halvings):
            frames = max(1, frames // 2 if self.original_masks else -(-frames // 2))
        return frames

    def _mix(self, taps: list[torch.Tensor]) -> torch.Tensor:
        if self.layer_logits is None:
            return taps[0]
        mixed = 0
        for weight, tap in zip(self.layer_logits.softmax(0), taps, strict=True):
            mixed = mixed + weight * tap
        return mixed


class Downsampler(nn.Module):
    """Convolutions over time: one to width 2 H, then ``depth`` of stride 2 to H; each with GELU and norm."""

    def __init__(self, width: int, hidden_size: int, depth: int, norm: str, original_masks: bool):
        super().__init__()
        self.input = nn.Linear(width, hidden_size) if width != hidden_size else nn.Identity()
        stages = [ConvStage(hidden_size, 2 * hidden_size, 3, 1, norm, original_masks)]
        for i in range(depth):
            stages.append(
                ConvStage(2 * hidden_size if i == 0 else hidden_size, hidden_size, 4, 2, norm, original_masks)
            )
        self.stages = nn.ModuleList(stages)
        self.multiple = 2 if original_masks else 2**depth

    def forward(self, frames: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames (B, T, C) -> (B, T / 2**depth, H), rounded up unless ``original_masks``."""
        frames = self.input(frames)
        frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % self.multiple))
        for stage in self.stages:
            frames, lens = stage(frames, lens)
        return frames, lens


class ConvStage(nn.Module):
    """Conv1d -> GELU -> norm over the real frames."""

    def __init__(self, width: int, output_size: int, kernel: int, stride: int, norm: str, original_masks: bool):
        super().__init__()
        self.conv = nn.Conv1d(width, output_size, kernel, stride, padding=1)
        self.norm = nn.BatchNorm1d(output_size) if norm == "batch" else nn.LayerNorm(output_size)
        self.original_masks = original_masks

    def forward(self, frames: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames (B, T, C), lens (B,) -> (B, T / stride, C'), lens'."""
        if not self.original_masks:
            frames = zero_beyond(frames, lens)
        frames = F.gelu(self.conv(frames.transpose(1, 2))).transpose(1, 2)
        stride = self.conv.stride[0]
        if self.original_masks:
            return self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]), (lens // stride).clamp(min=1)
        lens = -(-lens // stride)
        valid = is_valid(frames, lens)
        normed = self.norm(frames[valid])  # (real frames of all clips, C')
        out = normed.new_zeros(frames.shape)
        out[valid] = normed
        return out, lens


class FrameMLP(nn.Sequential):
    """Two layers on each frame."""

    def __init__(self, width: int, hidden_size: int):
        super().__init__(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size), nn.GELU())

    def forward(self, frames: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames (B, T, C) -> (B, T, H), lens as they are."""
        return super().forward(frames), lens


class KeepFrames(nn.Module):
    """Returns the frames unchanged."""

    def forward(self, frames: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames (B, T, C) and lens, unchanged."""
        return frames, lens


def _build_body(body: str, width: int, hidden_size: int, depth: int, norm: str, original_masks: bool) -> nn.Module:
    if body == "downsampler":
        return Downsampler(width, hidden_size, depth, norm, original_masks)
    return FrameMLP(width, hidden_size) if body == "mlp" else KeepFrames()
