"""Whisper's encoder of any size, from a hub id or folder; its decoder is never loaded.

Letters: B clips, N chunks of the whole batch, T frames, C width.
"""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper import modeling_whisper

from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders.base import EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.chunks import Chunk, cut, join, plan_fixed
from nemo_desta.perception.encoders.log_mel import LogMel
from nemo_desta.perception.encoders.weights import load_part
from nemo_desta.types import EncoderOutput, FrameGrid

SAMPLING_RATE = 16_000
HOP = 320  # samples per encoder frame: 160 per mel frame, halved in time by the second convolution
GRID = FrameGrid(SAMPLING_RATE, HOP)


class WhisperEncoder(FrozenEncoder):
    """Block outputs of a Hugging Face Whisper encoder for audio of any length.

    Audio is cut into chunks of Whisper's window (``max_source_positions`` frames of 20 ms), each padded with silence
    to the window as in Whisper's training, encoded as one flat batch and joined without a gap.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_layers: int,
        layer_ids: Iterable[int] | None = None,
        final_norm: bool = False,
        whole_windows: bool = False,
    ):
        """Wrap a `transformers` WhisperEncoder.

        model: cut after the highest of ``layer_ids`` by this constructor. ``num_layers``: blocks of the checkpoint.
        ``final_norm``: the last block's output passes the encoder's final LayerNorm (the other blocks' do not).
        ``whole_windows``: also return the frames of the silence that fills the last chunk, as DeSTA2.5 reads them.

        Raises:
            ValueError: bad ``layer_ids``, or ``final_norm`` without the last block among them.
        """
        layer_ids = resolve_layer_ids(layer_ids, num_layers)
        if final_norm and num_layers not in layer_ids:
            raise ValueError(
                f"final_norm normalises the output of the last block, {num_layers}, which layer_ids {list(layer_ids)} "
                "leave out"
            )
        super().__init__(model, _shape(model.config, num_layers, layer_ids, whole_windows=whole_windows))
        self.final_norm = final_norm
        self.whole_windows = whole_windows
        self.window_frames = model.config.max_source_positions
        self.log_mel = LogMel(model.config.num_mel_bins)
        model.layers = model.layers[: max(layer_ids)]
        if not final_norm:
            model.layer_norm = nn.Identity()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        layer_ids: Iterable[int] | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        final_norm: bool = False,
        whole_windows: bool = False,
    ) -> "WhisperEncoder":
        """Load from a folder or hub id in Hugging Face form; ``layer_ids`` None: all blocks, ``dtype`` None: float32.

        Only the tensors that the chosen blocks need are read.

        Raises:
            FileNotFoundError: no config or no weights there.
            ValueError: not a Whisper checkpoint, bad ``layer_ids``.
        """
        config = WhisperConfig.from_pretrained(path_or_id)
        num_layers = config.encoder_layers
        config.encoder_layers = max(resolve_layer_ids(layer_ids, num_layers))
        with torch.device("meta"):
            model = modeling_whisper.WhisperEncoder(config)
        if not final_norm:
            model.layer_norm = nn.Identity()
        weights = load_part(path_or_id, model.state_dict().keys(), prefixes=("model.encoder.", "encoder.", ""))
        weights = {name: tensor.to(as_dtype(dtype)) for name, tensor in weights.items()}
        model.load_state_dict(weights, assign=True)
        options = {"final_norm": final_norm, "whole_windows": whole_windows}
        return cls(model, num_layers=num_layers, layer_ids=layer_ids, **options)

    @classmethod
    def shape(cls, path: str, layer_ids: Iterable[int] | None = None, *, whole_windows: bool = False) -> EncoderShape:
        """The shape of `from_pretrained`'s encoder, from the checkpoint's config alone."""
        config = WhisperConfig.from_pretrained(path)
        layer_ids = resolve_layer_ids(layer_ids, config.encoder_layers)
        return _shape(config, config.encoder_layers, layer_ids, whole_windows=whole_windows)

    @property
    def window_secs(self) -> float:
        """Seconds of audio in one chunk."""
        return self.window_frames * HOP / SAMPLING_RATE

    def encode(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        """See `FrozenEncoder.encode`."""
        window = self.window_frames * HOP
        chunks = plan_fixed(lengths, window)
        features = self.log_mel(cut(audio, chunks, window))  # (N, mel bands, 2 * window_frames)
        layers = self._block_outputs(features.to(self.dtype))
        lens = [self.num_frames(length) for length in lengths]
        in_frames = [Chunk(c.clip, c.start // HOP, self.num_frames(c.length)) for c in chunks]
        return EncoderOutput(join(layers, in_frames, lens), torch.tensor(lens, device=audio.device))

    def _block_outputs(self, features: torch.Tensor) -> list[torch.Tensor]:
        """features: (N, mel bands, 2 * window_frames) -> one (N, window_frames, C) per layer id."""
        taps: dict[int, torch.Tensor] = {}

        def keep(layer_id: int, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            # transformers 4 blocks return a tuple, those of 5 the tensor.
            taps[layer_id] = output[0] if isinstance(output, tuple) else output

        hooks = [
            self.model.layers[i - 1].register_forward_hook(lambda _module, _args, output, i=i: keep(i, output))
            for i in self.layer_ids
        ]
        try:
            self.model(features)
        finally:
            for hook in hooks:
                hook.remove()
        if self.final_norm:
            taps[self.num_layers] = self.model.layer_norm(taps[self.num_layers])
        return [taps[i] for i in self.layer_ids]


def _shape(config: WhisperConfig, num_layers: int, layer_ids: tuple[int, ...], *, whole_windows: bool) -> EncoderShape:
    window = config.max_source_positions
    whole = FrameGrid(SAMPLING_RATE, window * HOP, frames_per_step=window)
    return EncoderShape(
        hidden_size=config.d_model,
        layer_ids=layer_ids,
        num_layers=num_layers,
        frame_grid=GRID,
        frames_of=whole.num_frames if whole_windows else None,
    )


def build_whisper(
    path: str,
    layer_ids: Iterable[int] | None = None,
    final_norm: bool = False,
    whole_windows: bool = False,
    dtype: torch.dtype | str | None = None,
) -> WhisperEncoder:
    """Config entry ``name: whisper``; see `WhisperEncoder.from_pretrained`."""
    return WhisperEncoder.from_pretrained(path, layer_ids, dtype, final_norm=final_norm, whole_windows=whole_windows)


build_whisper.shape = WhisperEncoder.shape  # tells the sizes without loading weights
