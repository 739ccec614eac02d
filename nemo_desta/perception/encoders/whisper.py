"""Whisper's encoder of any size, from a hub id or folder; its decoder is never loaded.

Letters: B clips, N chunks of the whole batch, T frames, C width.
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper import modeling_whisper

from nemo_desta.errors import ConfigError
from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders.base import EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.chunks import Chunk, cut, join, plan_fixed
from nemo_desta.perception.encoders.log_mel import LogMel
from nemo_desta.perception.encoders.weights import load_weights
from nemo_desta.types import EncoderOutput, FrameGrid

SAMPLING_RATE = 16_000
MEL_HOP = 160
HOP = 2 * MEL_HOP  # samples per encoder frame: the second convolution halves the mel frames in time
GRID = FrameGrid(SAMPLING_RATE, HOP)
#: ``window_secs="clip"``: seconds of silence after a clip at least, and the windows are multiples of.
MARGIN_SECS, STEP_SECS = 1, 2


class WhisperEncoder(FrozenEncoder):
    """Block outputs of a Hugging Face Whisper encoder for audio of any length.

    Audio is cut into chunks of Whisper's window (``max_source_positions`` frames of 20 ms), each padded with silence
    to the window as in Whisper's training, encoded as one flat batch and joined without a gap.

    With ``window_secs="clip"`` a short chunk is padded to a window of its own: a clip of half a second to 2 s and not
    to 30 s. The features are then close to those of the whole window, not equal.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_layers: int,
        layer_ids: Iterable[int] | None = None,
        final_norm: bool = False,
        whole_windows: bool = False,
        window_secs: str | None = None,
        original_masks: bool = False,
    ):
        """Wrap a `transformers` WhisperEncoder.

        model: cut after the highest of ``layer_ids`` by this constructor. ``num_layers``: blocks of the checkpoint.
        ``final_norm``: the last block's output passes the encoder's final LayerNorm (the other blocks' do not).
        ``whole_windows``: also return the frames of the silence that fills the last chunk, as DeSTA2.5 reads them.
        ``window_secs``: None: Whisper's window; "clip": as short as the clip allows. ``original_masks``: a clip's last
        frame counts only if both of its mel frames hold samples, as in ALARM.

        Raises:
            ValueError: bad ``layer_ids``, or ``final_norm`` without the last block among them. ConfigError: another
            ``window_secs``, or "clip" with ``whole_windows``.
        """
        if window_secs not in (None, "clip"):
            raise ConfigError(f"window_secs of a Whisper is null (its own window) or clip, found {window_secs!r}")
        if window_secs and whole_windows:
            raise ConfigError("whole_windows returns the frames of whole windows, which window_secs=clip cuts")
        layer_ids = resolve_layer_ids(layer_ids, num_layers)
        if final_norm and num_layers not in layer_ids:
            raise ValueError(
                f"final_norm normalises the output of the last block, {num_layers}, which layer_ids {list(layer_ids)} "
                "leave out"
            )
        frames = {"whole_windows": whole_windows, "original_masks": original_masks}
        super().__init__(model, _shape(model.config, num_layers, layer_ids, **frames))
        self.final_norm = final_norm
        self.whole_windows = whole_windows
        self.fits_windows = window_secs == "clip"
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
        window_secs: str | None = None,
        original_masks: bool = False,
    ) -> "WhisperEncoder":
        """Load from a folder or hub id in Hugging Face form; ``layer_ids`` None: all blocks, ``dtype`` None: float32.

        Only the tensors that the chosen blocks need are read.

        Raises:
            FileNotFoundError: no config or no weights there.
            ValueError: not a Whisper checkpoint, bad ``layer_ids``. ConfigError: see the constructor.
        """
        config = WhisperConfig.from_pretrained(path_or_id)
        num_layers = config.encoder_layers
        config.encoder_layers = max(resolve_layer_ids(layer_ids, num_layers))
        with torch.device("meta"):
            model = modeling_whisper.WhisperEncoder(config)
        if not final_norm:
            model.layer_norm = nn.Identity()
        load_weights(model, path_or_id, dtype=as_dtype(dtype))
        options = {"final_norm": final_norm, "whole_windows": whole_windows, "window_secs": window_secs}
        return cls(model, num_layers=num_layers, layer_ids=layer_ids, original_masks=original_masks, **options)

    @classmethod
    def shape(
        cls,
        path: str,
        layer_ids: Iterable[int] | None = None,
        *,
        whole_windows: bool = False,
        original_masks: bool = False,
    ) -> EncoderShape:
        """The shape of `from_pretrained`'s encoder, from the checkpoint's config alone."""
        config = WhisperConfig.from_pretrained(path)
        layer_ids = resolve_layer_ids(layer_ids, config.encoder_layers)
        frames = {"whole_windows": whole_windows, "original_masks": original_masks}
        return _shape(config, config.encoder_layers, layer_ids, **frames)

    def encode(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        """See `FrozenEncoder.encode`."""
        chunks = plan_fixed(lengths, self.window_frames * HOP)
        by_window: dict[int, list[int]] = {}
        for number, chunk in enumerate(chunks):
            by_window.setdefault(self._frames_for(chunk), []).append(number)
        encoded = {
            frames: self._encode_windows(audio, [chunks[i] for i in numbers], frames)
            for frames, numbers in by_window.items()
        }
        layers = next(iter(encoded.values()))
        if len(encoded) > 1:
            sizes = (len(chunks), max(encoded), self.hidden_size)
            layers = [layer.new_zeros(sizes) for layer in layers]
            for frames, numbers in by_window.items():
                for layer, part in zip(layers, encoded[frames], strict=True):
                    layer[numbers, :frames] = part
        lens = [self.num_frames(length) for length in lengths]
        in_frames = [Chunk(c.clip, c.start // HOP, self.num_frames(c.length)) for c in chunks]
        return EncoderOutput(join(layers, in_frames, lens), torch.tensor(lens, device=audio.device))

    def _frames_for(self, chunk: Chunk) -> int:
        """The window in which a chunk is encoded. It depends on the chunk alone, not on its batch."""
        if not self.fits_windows:
            return self.window_frames
        step = STEP_SECS * SAMPLING_RATE
        samples = -(-(chunk.length + MARGIN_SECS * SAMPLING_RATE) // step) * step
        return min(samples // HOP, self.window_frames)

    def _encode_windows(self, audio: torch.Tensor, chunks: list[Chunk], frames: int) -> list[torch.Tensor]:
        """audio: (B, S) -> one (N, frames, C) per layer id."""
        features = self.log_mel(cut(audio, chunks, frames * HOP))  # (N, mel bands, 2 * frames)
        return self._block_outputs(_with_window(self.model, frames), features.to(self.dtype))

    def _block_outputs(self, model: nn.Module, features: torch.Tensor) -> list[torch.Tensor]:
        """features: (N, mel bands, 2 T) -> one (N, T, C) per layer id."""
        taps: dict[int, torch.Tensor] = {}

        def keep(layer_id: int, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            # transformers 4 blocks return a tuple, those of 5 the tensor.
            taps[layer_id] = output[0] if isinstance(output, tuple) else output

        hooks = [
            self.model.layers[i - 1].register_forward_hook(lambda _module, _args, output, i=i: keep(i, output))
            for i in self.layer_ids
        ]
        try:
            model(features)
        finally:
            for hook in hooks:
                hook.remove()
        if self.final_norm:
            taps[self.num_layers] = self.model.layer_norm(taps[self.num_layers])
        return [taps[i] for i in self.layer_ids]


def _with_window(model: nn.Module, frames: int) -> nn.Module:
    """The model itself, or one with its weights and a shorter window, at whose start all positions are the same."""
    if frames == model.config.max_source_positions:
        return model
    short = copy.copy(model)
    short._modules = dict(model._modules)
    short.config = copy.copy(model.config)
    short.config.max_source_positions = frames
    short.embed_positions = nn.Embedding.from_pretrained(model.embed_positions.weight[:frames])
    return short


def _shape(
    config: WhisperConfig, num_layers: int, layer_ids: tuple[int, ...], *, whole_windows: bool, original_masks: bool
) -> EncoderShape:
    window = config.max_source_positions
    whole = FrameGrid(SAMPLING_RATE, window * HOP, frames_per_step=window)
    frames_of = whole.num_frames if whole_windows else _frames_like_alarm if original_masks else None
    return EncoderShape(
        hidden_size=config.d_model, layer_ids=layer_ids, num_layers=num_layers, frame_grid=GRID, frames_of=frames_of
    )


def _frames_like_alarm(num_samples: int) -> int:
    """Pairs of mel frames that hold samples; at least one."""
    return max(1, -(-num_samples // MEL_HOP) // 2)


def build_whisper(
    path: str,
    layer_ids: Iterable[int] | None = None,
    final_norm: bool = False,
    whole_windows: bool = False,
    window_secs: str | None = None,
    dtype: torch.dtype | str | None = None,
    original_masks: bool = False,
) -> WhisperEncoder:
    """Config entry ``name: whisper``; see `WhisperEncoder.from_pretrained`."""
    options = {"final_norm": final_norm, "whole_windows": whole_windows, "window_secs": window_secs}
    return WhisperEncoder.from_pretrained(path, layer_ids, dtype, original_masks=original_masks, **options)


build_whisper.shape = WhisperEncoder.shape  # tells the sizes without loading weights
