"""Any audio encoder that transformers has itself and whose frames are one line in time, as a frozen encoder.

Block outputs are taken by hooks on the blocks: `hidden_states` of transformers means another thing in almost every
model and version. How samples become frames is measured (`hf_probe`), so a new architecture needs no code here.
Letters: B clips, S samples, P positions of the encoder's input, N windows of the whole batch, T frames, C width.
"""

from collections.abc import Iterable

import torch
from torch import nn

from nemo_desta.errors import ConfigError
from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders.base import EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.chunks import Chunk, cut, plan_fixed
from nemo_desta.perception.encoders.hf_checkpoint import open_checkpoint
from nemo_desta.perception.encoders.hf_features import EXTRACTOR_FILES, HFFeatures
from nemo_desta.perception.encoders.hf_probe import Facts, block_outputs, measure
from nemo_desta.types import EncoderOutput, FrameGrid

WINDOW_SECS = 30.0  # of models that take any length; longer ones cost memory with the square of their length
#: Zeros that ALARM puts before and after a clip for w2v-BERT, so that 30 s are 1500 frames.
ALARM_PAD = 160


class HFEncoder(FrozenEncoder):
    """Block outputs of an encoder of transformers for audio of any length.

    A clip's features are computed over the whole clip, as transformers does for the clip alone, and encoded in windows
    of ``window_secs`` (30 s) that do not see each other; a model with a fixed input, as Whisper's, has windows of its
    own. Windows of one length are encoded together and need no mask: a clip in a batch equals the clip alone. The
    frames are those of the model for the clip alone; a clip that is too short for one frame is filled with silence.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: Facts,
        features: HFFeatures,
        *,
        layer_ids: Iterable[int] | None = None,
        final_norm: bool = False,
        window_secs: float | None = None,
    ):
        """Wrap a loaded encoder; its blocks after the highest of ``layer_ids`` are removed.

        ``final_norm``: the last block's output passes the norm that follows the blocks (the other blocks' do not).

        Raises:
            ValueError: bad ``layer_ids``. ConfigError: ``final_norm`` without such a norm or without the last block
                among ``layer_ids``; ``window_secs`` shorter than a frame, or of a model with a fixed input.
        """
        super().__init__(model, _shape(facts, features.sampling_rate, layer_ids))
        if final_norm and (facts.final_norm is None or self.num_layers not in self.layer_ids):
            raise ConfigError(
                f"final_norm needs the last block, {self.num_layers}, among layer_ids {list(self.layer_ids)}, and a "
                f"model with a norm after it ({model.config.model_type}: {facts.final_norm or 'none'})"
            )
        if window_secs is not None and features.window_samples:
            fixed = features.window_samples / self.sampling_rate
            raise ConfigError(f"window_secs={window_secs}: {model.config.model_type} has a fixed input of {fixed:g} s")
        if (window_secs or WINDOW_SECS) * self.frame_rate < 1:
            raise ConfigError(f"window_secs={window_secs} is shorter than a frame")
        self.facts, self.features, self.final_norm = facts, features, final_norm
        self.window_samples = features.window_samples
        self.window_frames = int((window_secs or WINDOW_SECS) * self.frame_rate + 1e-6)
        del model.get_submodule(facts.blocks)[max(self.layer_ids) :]

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        layer_ids: Iterable[int] | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        final_norm: bool = False,
        window_secs: float | None = None,
        pad_samples: int = 0,
    ) -> "HFEncoder":
        """Load a folder or hub id. ``layer_ids`` None: all blocks; ``dtype`` None: float32.

        Raises:
            ConfigError: not an encoder that can be used; see `hf_checkpoint.open_checkpoint` and the constructor.
            FileNotFoundError: no weights. ValueError: a tensor is missing, or bad ``layer_ids``.
        """
        facts, features = measure(path, pad_samples), HFFeatures(path, pad_samples)
        resolve_layer_ids(layer_ids, facts.num_layers)
        model = open_checkpoint(path).load(as_dtype(dtype))
        return cls(model, facts, features, layer_ids=layer_ids, final_norm=final_norm, window_secs=window_secs)

    @classmethod
    def shape(cls, path: str, layer_ids: Iterable[int] | None = None, *, pad_samples: int = 0) -> EncoderShape:
        """The shape of `from_pretrained`'s encoder; no weights are read."""
        return _shape(measure(path, pad_samples), HFFeatures(path).sampling_rate, layer_ids)

    def encode(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        """See `FrozenEncoder.encode`."""
        lens = [self.num_frames(length) for length in lengths]
        if self.window_samples:
            parts = self._fixed_windows(audio, lengths)
        else:
            parts = [part for clip, length in enumerate(lengths) for part in self._windows(clip, audio[clip, :length])]
        layers = [audio.new_zeros(len(lens), max(lens), self.hidden_size, dtype=self.dtype) for _ in self.layer_ids]
        for windows, values, valid in _grouped(parts):
            outputs = self._block_outputs(values.to(self.dtype), valid)
            for layer, output in zip(layers, outputs, strict=True):
                for row, (clip, start, frames) in enumerate(windows):
                    layer[clip, start : start + frames] = output[row, :frames]
        return EncoderOutput(tuple(layers), torch.tensor(lens, device=audio.device))

    def _fixed_windows(self, audio: torch.Tensor, lengths: list[int]) -> list[tuple[Chunk, torch.Tensor, int]]:
        """Per window: its frames, its features, the positions of them that are no silence after the clip."""
        chunks = plan_fixed(lengths, self.window_samples)
        values = self.features(cut(audio, chunks, self.window_samples))
        hop = self.facts.frames_of.hop
        frames = [Chunk(c.clip, c.start // hop, self.num_frames(c.length)) for c in chunks]
        valid = [self.features.valid_positions(chunk.length) for chunk in chunks]
        return list(zip(frames, values, valid, strict=True))

    def _windows(self, clip: int, samples: torch.Tensor) -> list[tuple[Chunk, torch.Tensor, int]]:
        """The same of one clip (S,): its features cut where frames begin."""
        total, inner, axis = self.facts.frames_of, self.facts.inner, self.facts.time_axis
        missing = max(0, total.least - len(samples))
        values = self.features(nn.functional.pad(samples, (0, missing))[None])[0]
        size, found = values.shape[axis], []
        chunks = plan_fixed([total(len(samples))], self.window_frames)
        for _, start, frames in chunks:
            begin = start * inner.hop
            reach = max(frames * inner.hop, (frames - 1) * inner.hop + inner.first)
            end = size if start + frames == total(len(samples)) else min(size, begin + reach)
            found.append((Chunk(clip, start, frames), values.narrow(axis, begin, end - begin), end - begin))
        return found

    def _block_outputs(self, values: torch.Tensor, valid: list[int]) -> list[torch.Tensor]:
        """values: (N, ...) -> one (N, T, C) per layer id."""
        axis, skip = self.facts.time_axis, self.facts.prefix_tokens
        blocks = self.model.get_submodule(self.facts.blocks)
        outputs = block_outputs(self.model, blocks, self.layer_ids, values, axis, valid)
        if len({output.shape[1] for output in outputs}) > 1:
            counts = dict(zip(self.layer_ids, (output.shape[1] for output in outputs), strict=True))
            raise ConfigError(f"blocks of '{self.model.config.model_type}' differ in their number of frames: {counts}")
        if self.final_norm:
            last = self.layer_ids.index(self.num_layers)
            outputs[last] = self.model.get_submodule(self.facts.final_norm)(outputs[last])
        return [output[:, skip:] for output in outputs]


def _grouped(parts: list[tuple[Chunk, torch.Tensor, int]]) -> list[tuple[list[Chunk], torch.Tensor, list[int]]]:
    """Windows with inputs of one shape, put together: their places, (N, ...), their valid positions."""
    by_shape: dict[torch.Size, list[tuple[Chunk, torch.Tensor, int]]] = {}
    for part in parts:
        by_shape.setdefault(part[1].shape, []).append(part)
    return [
        ([chunk for chunk, _, _ in group], torch.stack([values for _, values, _ in group]), [v for _, _, v in group])
        for group in by_shape.values()
    ]


def _shape(facts: Facts, sampling_rate: int, layer_ids: Iterable[int] | None) -> EncoderShape:
    return EncoderShape(
        hidden_size=facts.hidden_size,
        layer_ids=resolve_layer_ids(layer_ids, facts.num_layers),
        num_layers=facts.num_layers,
        frame_grid=FrameGrid(sampling_rate, facts.frames_of.hop),
        frames_of=facts.frames_of,
    )


def build_hf(
    path: str,
    layer_ids: Iterable[int] | None = None,
    final_norm: bool = False,
    window_secs: float | None = None,
    dtype: torch.dtype | str | None = None,
) -> HFEncoder:
    """Config entry ``name: hf``; see `HFEncoder.from_pretrained`."""
    return HFEncoder.from_pretrained(path, layer_ids, dtype, final_norm=final_norm, window_secs=window_secs)


def build_w2vbert(
    path: str,
    layer_ids: Iterable[int] | None = None,
    window_secs: float | None = None,
    dtype: torch.dtype | str | None = None,
) -> HFEncoder:
    """Config entry ``name: w2vbert``: w2v-BERT 2.0 as ALARM reads it, with zeros around each clip."""
    return HFEncoder.from_pretrained(path, layer_ids, dtype, window_secs=window_secs, pad_samples=ALARM_PAD)


def shape_w2vbert(path: str, layer_ids: Iterable[int] | None = None) -> EncoderShape:
    """The shape of `build_w2vbert`'s encoder."""
    return HFEncoder.shape(path, layer_ids, pad_samples=ALARM_PAD)


build_hf.shape, build_w2vbert.shape = HFEncoder.shape, shape_w2vbert  # tell the sizes without loading weights
build_hf.feature_files = build_w2vbert.feature_files = EXTRACTOR_FILES
