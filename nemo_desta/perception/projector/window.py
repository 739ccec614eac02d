"""The default projector: one vector per time window, pooled from every encoder on one common grid.

Per encoder: softmax mix of layers -> LayerNorm -> pooling of each window's frames; then the encoders side by side ->
two-layer MLP -> LLM width. The windows of a batch are packed, so padding costs nothing and is never read.

Letters: N encoder layers, C encoder width, P windows of the batch, K frames of the longest window, M queries, D LLM
width.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.ops import KERNELS, max_window_frames, mix_pool, num_windows, window_table
from nemo_desta.perception.projector.base import Encoders, Projector, pad_packed
from nemo_desta.types import EncoderOutput, FrameGrid


class WindowProjector(Projector):
    """Windows of ``1 / tokens_per_second`` seconds to one vector each."""

    def __init__(
        self,
        encoders: Encoders,
        output_size: int,
        *,
        tokens_per_second: int | float | str | Fraction = 6.25,
        num_queries: int = 1,
        hidden_size: int | None = None,
        mode: Literal["attention", "stack"] = "attention",
        kernel: Literal["auto", "triton", "torch"] = "auto",
        markers: bool = False,
        output_norm: bool = True,
        output_rms: float | None = None,
    ):
        """Build one pool per encoder and the MLP; see `Projector` for the arguments that all projectors share.

        Args:
            tokens_per_second: vectors per second of audio; a number, or a fraction as "25/3".
            num_queries: M, vectors pooled per window and encoder; the MLP combines them to one output vector.
            hidden_size: width of the MLP's hidden layer, D if None.
            mode: "attention" pools a window's frames, "stack" concatenates them.
            kernel: what computes the pooling, see `nemo_desta.ops.choose_kernel`; the result is the same.

        Raises:
            ValueError: unknown mode or kernel, or a rate that is not positive.
        """
        if mode not in ("attention", "stack"):
            raise ValueError(f"mode is {mode!r}; the window projector knows 'attention' and 'stack'")
        if kernel not in KERNELS:
            raise ValueError(f"kernel is {kernel!r}; the window projector knows {', '.join(KERNELS)}")
        super().__init__(encoders, output_size, markers=markers, output_norm=output_norm, output_rms=output_rms)
        self.tokens_per_second = tokens_per_second
        self.pools = nn.ModuleDict(
            {
                name: WindowPool(
                    len(encoder.layer_ids),
                    encoder.hidden_size,
                    encoder.frame_grid,
                    tokens_per_second,
                    num_queries,
                    mode,
                    kernel,
                )
                for name, encoder in encoders.items()
            }
        )
        width = sum(pool.output_size for pool in self.pools.values())
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_size or output_size), nn.GELU(), nn.Linear(hidden_size or output_size, output_size)
        )

    def project(
        self, features: dict[str, EncoderOutput], audio_lens: torch.Tensor, sampling_rate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Projector.project`."""
        windows = num_windows(audio_lens, sampling_rate, self.tokens_per_second)
        total = int(windows.sum())  # the only number that the host needs: the size of the packed tensors
        pooled = [pool(features[name], windows, total) for name, pool in self.pools.items()]
        packed = torch.cat(pooled, dim=-1).to(self.mlp[0].weight.dtype)  # (P, sum of M * C)
        return pad_packed(self.mlp(packed), windows), windows

    def calibrate(self, features: Iterable[dict[str, EncoderOutput]]) -> None:
        """See `Projector.calibrate`."""
        moments: dict[str, torch.Tensor | int] = {}
        for batch in features:
            for name, pool in self.pools.items():
                moments[name] = moments.get(name, 0) + pool.moments(batch[name])
        if not moments:
            raise ValueError("no clip to calibrate on")
        for name, pool in self.pools.items():
            pool.standardise(moments[name])

    def num_vectors(self, num_samples: int, sampling_rate: int) -> int:
        """See `Projector.num_vectors`."""
        return num_windows(num_samples, sampling_rate, self.tokens_per_second)


class WindowPool(nn.Module):
    """Pools one encoder's frames of each window. It starts as the plain mean over layers and frames."""

    def __init__(
        self,
        num_layers: int,
        width: int,
        grid: FrameGrid,
        tokens_per_second: int | float | str | Fraction,
        num_queries: int,
        mode: Literal["attention", "stack"],
        kernel: Literal["auto", "triton", "torch"],
    ):
        super().__init__()
        self.grid, self.tokens_per_second, self.mode, self.kernel = grid, tokens_per_second, mode, kernel
        max_frames = max_window_frames(grid, tokens_per_second)
        self.layer_logits = nn.Parameter(torch.zeros(num_layers))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        if mode == "attention":
            self.query = nn.Parameter(torch.zeros(num_queries, width))
            self.position_bias = nn.Parameter(torch.zeros(num_queries, max_frames))
            self.output_size = num_queries * width
        else:
            self.query = None
            self.register_buffer("position_bias", torch.zeros(1, max_frames), persistent=False)
            self.output_size = max_frames * width

    @torch.no_grad()
    def moments(self, output: EncoderOutput) -> torch.Tensor:
        """(3, C) float64 on the CPU: number, sum and sum of squares of the normalised frames of each channel."""
        weights = self.layer_logits.softmax(0)
        mixed = sum(w * layer.float() for w, layer in zip(weights, output.layers, strict=True))  # (B, frames, C)
        inside = torch.arange(mixed.shape[1], device=mixed.device) < output.lens[:, None]
        frames = F.layer_norm(mixed, mixed.shape[-1:])[inside].double()
        return torch.stack([torch.ones_like(frames).sum(0), frames.sum(0), frames.square().sum(0)]).cpu()

    @torch.no_grad()
    def standardise(self, moments: torch.Tensor) -> None:
        """Set the norm's weight and bias so that every channel has mean 0 and variance 1 over the counted frames."""
        count, total, squares = moments
        mean = total / count
        scale = (squares / count - mean.square()).clamp(min=1e-6).rsqrt()
        self.norm_weight.copy_(scale)
        self.norm_bias.copy_(-mean * scale)

    def forward(self, output: EncoderOutput, windows_per_clip: torch.Tensor, total: int | None = None) -> torch.Tensor:
        """An encoder's output, (B,) windows of each clip and their sum P -> (P, output_size)."""
        max_frames = output.layers[0].shape[1]
        table = window_table(output.lens, windows_per_clip, max_frames, self.grid, self.tokens_per_second, total=total)
        pooled = mix_pool(
            output.layers,
            self.layer_logits.softmax(0),
            self.norm_weight,
            self.norm_bias,
            self.query,
            self.position_bias,
            table,
            mode=self.mode,
            kernel=self.kernel,
        )
        return pooled.flatten(1)
