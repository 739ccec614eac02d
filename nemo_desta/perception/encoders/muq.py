"""MuQ as a frozen encoder: from waveforms at 24 kHz to selected block outputs, for music of any length.

Letters: B clips, S samples, N chunks of the whole batch, C width. A step is one token of 40 ms.
"""

from collections.abc import Iterable

import torch

from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders import muq_mel
from nemo_desta.perception.encoders.base import EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.chunks import Chunk, cut, join, plan_even, plan_fixed
from nemo_desta.perception.encoders.muq_model import FRAMES_PER_TOKEN, Muq, MuqConfig
from nemo_desta.perception.encoders.weights import load_config, load_weights
from nemo_desta.types import EncoderOutput, FrameGrid

HOP = FRAMES_PER_TOKEN * muq_mel.HOP  # samples per step
GRID = FrameGrid(muq_mel.SAMPLING_RATE, HOP)
MIN_STEPS = 2  # one step is too short to be mirrored at its ends
MAX_CHUNK_SECS = 30.0


class MuqEncoder(FrozenEncoder):
    """Block outputs of a MuQ; the last block's output passes the final LayerNorm, as in the original.

    By default a clip's last step is completed with silence, long clips are cut into equal chunks of at most
    ``chunk_secs``, and no layer reads padding: every chunk is computed as the original computes it alone. With
    ``original_masks`` it computes as ALARM: windows of exactly ``chunk_secs``, the last one filled with silence, which
    the convolutions read; a clip's frames are the complete steps. In both cases a clip in any batch equals the clip
    alone.
    """

    def __init__(
        self,
        model: Muq,
        *,
        layer_ids: Iterable[int] | None = None,
        original_masks: bool = False,
        chunk_secs: float = 30.0,
    ):
        """Freeze ``model``. ``layer_ids``: 1-based blocks, all of the checkpoint's if None.

        Raises:
            ValueError: bad ``layer_ids``, or ``chunk_secs`` outside 0.08 (two steps) to 30.
        """
        shortest = MIN_STEPS * HOP / muq_mel.SAMPLING_RATE
        if not shortest <= chunk_secs <= MAX_CHUNK_SECS:
            raise ValueError(
                f"chunk_secs {chunk_secs}: must lie between {shortest} (two steps) and {MAX_CHUNK_SECS:g}"
            )
        super().__init__(model, _shape(model.config, layer_ids, original_masks))
        self.original_masks = original_masks
        self.chunk_steps = int(chunk_secs * muq_mel.SAMPLING_RATE / HOP + 1e-6)
        self.mel = muq_mel.MuqMel(model.config.melspec_2048_mean, model.config.melspec_2048_std)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        layer_ids: Iterable[int] | None = None,
        original_masks: bool = False,
        dtype: torch.dtype | str | None = None,
        *,
        chunk_secs: float = 30.0,
    ) -> "MuqEncoder":
        """Load from a folder or hub id; ``layer_ids`` None: all blocks, ``dtype`` None: float32.

        Only the tensors that the chosen blocks need are read.

        Raises:
            FileNotFoundError: no config or no weights there.
            ConfigError: not a MuQ checkpoint. ValueError: a tensor is missing, bad ``layer_ids``.
        """
        config = MuqConfig.from_dict(load_config(path_or_id))
        with torch.device("meta"):
            model = Muq(config, num_layers=max(resolve_layer_ids(layer_ids, config.encoder_depth)))
        load_weights(model, path_or_id, dtype=as_dtype(dtype))
        return cls(model, layer_ids=layer_ids, original_masks=original_masks, chunk_secs=chunk_secs)

    @classmethod
    def shape(cls, path: str, layer_ids: Iterable[int] | None = None, original_masks: bool = False) -> EncoderShape:
        """The shape of `from_pretrained`'s encoder, from the checkpoint's config alone."""
        return _shape(MuqConfig.from_dict(load_config(path)), layer_ids, original_masks)

    def encode(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        """See `FrozenEncoder.encode`."""
        if self.original_masks:
            chunks = plan_fixed(lengths, self.chunk_steps * HOP)
            sizes = [self.chunk_steps] * len(chunks)
        else:
            even = plan_even([GRID.num_frames(length) for length in lengths], self.chunk_steps)
            chunks = [_in_samples(chunk, lengths[chunk.clip]) for chunk in even]
            sizes = [max(MIN_STEPS, chunk.length) for chunk in even]
        steps = [Chunk(c.clip, c.start // HOP, GRID.num_frames(c.length)) for c in chunks]
        rows = cut(audio, chunks, max(sizes) * HOP)  # (N, samples)
        mel = self.mel(rows, [size * HOP for size in sizes])
        valid = torch.tensor([step.length for step in steps], device=audio.device)
        outputs = self.model(mel, valid, alone=not self.original_masks)
        lens = [self.num_frames(length) for length in lengths]
        layers = join([outputs[i - 1] for i in self.layer_ids], steps, lens)
        return EncoderOutput(layers, torch.tensor(lens, device=audio.device))


def build_muq(
    path: str,
    layer_ids: Iterable[int] | None = None,
    original_masks: bool = False,
    chunk_secs: float = 30.0,
    dtype: torch.dtype | str | None = None,
) -> MuqEncoder:
    """Config entry ``name: muq``; see `MuqEncoder.from_pretrained`."""
    return MuqEncoder.from_pretrained(path, layer_ids, original_masks, dtype, chunk_secs=chunk_secs)


build_muq.shape = MuqEncoder.shape  # tells the sizes without loading weights


def _shape(config: MuqConfig, layer_ids: Iterable[int] | None, original_masks: bool) -> EncoderShape:
    return EncoderShape(
        hidden_size=config.encoder_dim,
        layer_ids=resolve_layer_ids(layer_ids, config.encoder_depth),
        num_layers=config.encoder_depth,
        frame_grid=GRID,
        frames_of=_complete_steps if original_masks else None,
    )


def _complete_steps(num_samples: int) -> int:
    """As ALARM counts a clip's frames; at least one."""
    return max(1, num_samples // HOP)


def _in_samples(chunk: Chunk, num_samples: int) -> Chunk:
    """A chunk of steps as the samples of its clip; the last step may be incomplete."""
    start = chunk.start * HOP
    return Chunk(chunk.clip, start, min(chunk.length * HOP, num_samples - start))
