"""EAT or SSLAM as a frozen encoder: from waveforms to selected block outputs, for audio of any length.

Letters: B clips, S samples, T fbank frames, N chunks of the whole batch, C width. A step is a patch row of 160 ms.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders import fbank as kaldi
from nemo_desta.perception.encoders.base import EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.chunks import Chunk, cut, join, plan_even, plan_fixed
from nemo_desta.perception.encoders.eat_model import BANDS_PER_STEP, PATCH, Eat, EatConfig
from nemo_desta.perception.encoders.weights import load_config, load_weights
from nemo_desta.perception.masks import zero_beyond
from nemo_desta.types import EncoderOutput, FrameGrid

HOP = PATCH * kaldi.HOP  # samples per step
FRAMES_PER_TOKEN = PATCH // BANDS_PER_STEP
GRID = FrameGrid(kaldi.SAMPLING_RATE, HOP, BANDS_PER_STEP, overlap=True)
FBANK_MEAN, FBANK_STD = -4.268, 4.569  # of AudioSet; EAT divides by twice the deviation
MAX_CHUNK_SECS = 30.0


class EatEncoder(FrozenEncoder):
    """Block outputs of an EAT or SSLAM checkpoint, pre-trained or fine-tuned; the class token is left out.

    By default a clip's last step is completed with the padding value of the original, long clips are cut into equal
    chunks of at most ``chunk_secs``, and steps beyond a chunk are masked. With ``original_masks`` it computes as
    ALARM: windows of exactly ``chunk_secs`` whose padding is attended, and half a frame per complete fbank window. In
    both cases a clip in any batch equals the clip alone.
    """

    def __init__(
        self,
        model: Eat,
        *,
        layer_ids: Iterable[int] | None = None,
        original_masks: bool = False,
        chunk_secs: float = 10.24,
    ):
        """Freeze ``model``. ``layer_ids``: 1-based blocks, all of the checkpoint's if None.

        Raises:
            ValueError: bad ``layer_ids``, or ``chunk_secs`` outside 0.16 (one patch) to 30.
        """
        if not HOP / kaldi.SAMPLING_RATE <= chunk_secs <= MAX_CHUNK_SECS:
            raise ValueError(f"chunk_secs {chunk_secs}: must lie between 0.16 (one patch) and {MAX_CHUNK_SECS:g}")
        super().__init__(model, _shape(model.config, layer_ids, original_masks))
        self.original_masks = original_masks
        self.chunk_steps = int(chunk_secs * kaldi.SAMPLING_RATE / HOP + 1e-6)
        self._fbank = kaldi.KaldiFbank(hann_power=1.0, scale=1.0)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        layer_ids: Iterable[int] | None = None,
        original_masks: bool = False,
        dtype: torch.dtype | str | None = None,
        *,
        chunk_secs: float = 10.24,
    ) -> "EatEncoder":
        """Load from a folder or hub id; ``layer_ids`` None: all blocks, ``dtype`` None: float32.

        Only the tensors that the chosen blocks need are read; code that lies beside the weights is not run.

        Raises:
            FileNotFoundError: no config or no weights there.
            ConfigError: not an EAT checkpoint. ValueError: a tensor is missing, bad ``layer_ids``.
        """
        config = EatConfig.from_dict(load_config(path_or_id))
        with torch.device("meta"):
            model = Eat(config, num_layers=max(resolve_layer_ids(layer_ids, config.depth)))
        load_weights(model, path_or_id, dtype=as_dtype(dtype))
        return cls(model, layer_ids=layer_ids, original_masks=original_masks, chunk_secs=chunk_secs)

    @classmethod
    def shape(cls, path: str, layer_ids: Iterable[int] | None = None, original_masks: bool = False) -> EncoderShape:
        """The shape of `from_pretrained`'s encoder, from the checkpoint's config alone."""
        return _shape(EatConfig.from_dict(load_config(path)), layer_ids, original_masks)

    def fbank(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> torch.Tensor:
        """Filter bank of each clip, less its mean, between 160 zeros. audio: (B, S), audio_lens: (B,) -> (B, T, 128).

        T = ceil(S / 160); not normalised; zeros beyond a clip's frames and, with ``original_masks``, where its last
        window is not complete.
        """
        audio = zero_beyond(audio, audio_lens)
        mean = audio.double().sum(1) / audio_lens.clamp(min=1)
        audio = zero_beyond(audio - mean.float()[:, None], audio_lens)
        features = self._fbank(F.pad(audio, (kaldi.HOP, kaldi.WINDOW)))
        frames = [self._num_fbank_frames(length) for length in audio_lens.tolist()]
        features = zero_beyond(features, torch.tensor(frames, device=audio.device))
        return features[:, : -(-audio.shape[1] // kaldi.HOP)]

    def encode(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        """See `FrozenEncoder.encode`."""
        if self.original_masks:
            chunks = plan_fixed([self._num_fbank_frames(length) for length in lengths], self.chunk_steps * PATCH)
            size, token_lens = self.chunk_steps * PATCH, None
        else:
            steps = [GRID.num_frames(length) // BANDS_PER_STEP for length in lengths]
            chunks = [Chunk(c.clip, c.start * PATCH, c.length * PATCH) for c in plan_even(steps, self.chunk_steps)]
            size = max(chunk.length for chunk in chunks)
            token_lens = torch.tensor([chunk.length // FRAMES_PER_TOKEN for chunk in chunks], device=audio.device)
        fbank = self.fbank(audio, torch.tensor(lengths, device=audio.device))
        missing = max(chunk.start + chunk.length for chunk in chunks) - fbank.shape[1]
        rows = cut(F.pad(fbank, (0, 0, 0, max(0, missing))), chunks, size)  # (N, size, 128)
        outputs = self.model((rows - FBANK_MEAN) / (2 * FBANK_STD), token_lens)  # padding: 0 before it is normalised
        lens = [self.num_frames(length) for length in lengths]
        tokens = [Chunk(c.clip, c.start // FRAMES_PER_TOKEN, max(1, c.length // FRAMES_PER_TOKEN)) for c in chunks]
        layers = join([outputs[i - 1][:, 1:] for i in self.layer_ids], tokens, lens)
        return EncoderOutput(layers, torch.tensor(lens, device=audio.device))

    def _num_fbank_frames(self, num_samples: int) -> int:
        return _complete_windows(num_samples) if self.original_masks else -(-num_samples // kaldi.HOP)


def build_eat(
    path: str,
    layer_ids: Iterable[int] | None = None,
    original_masks: bool = False,
    chunk_secs: float = 10.24,
    dtype: torch.dtype | str | None = None,
) -> EatEncoder:
    """Config entry ``name: eat``; see `EatEncoder.from_pretrained`."""
    return EatEncoder.from_pretrained(path, layer_ids, original_masks, dtype, chunk_secs=chunk_secs)


build_eat.shape = EatEncoder.shape  # tells the sizes without loading weights


def _shape(config: EatConfig, layer_ids: Iterable[int] | None, original_masks: bool) -> EncoderShape:
    return EncoderShape(
        hidden_size=config.embed_dim,
        layer_ids=resolve_layer_ids(layer_ids, config.depth),
        num_layers=config.depth,
        frame_grid=GRID,
        frames_of=_frames_like_original if original_masks else None,
    )


def _complete_windows(num_samples: int) -> int:
    """Of a clip between 160 zeros on both sides."""
    return kaldi.num_fbank_frames(num_samples + 2 * kaldi.HOP)


def _frames_like_original(num_samples: int) -> int:
    """As ALARM counts a clip's frames, whole steps or not; at least one."""
    return max(1, _complete_windows(num_samples) // FRAMES_PER_TOKEN)
