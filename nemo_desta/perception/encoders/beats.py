"""BEATs as a frozen encoder: from waveforms to selected block outputs, for audio of any length.

Letters: B clips, S samples, T fbank frames, N chunks of the whole batch, C width. A step is a patch row of 160 ms.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F

from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders import beats_checkpoint
from nemo_desta.perception.encoders import fbank as kaldi
from nemo_desta.perception.encoders.base import EncoderShape, FrozenEncoder, resolve_layer_ids
from nemo_desta.perception.encoders.beats_model import BANDS_PER_STEP, Beats, BeatsConfig
from nemo_desta.perception.encoders.chunks import Chunk, cut, join, plan_even
from nemo_desta.perception.masks import zero_beyond
from nemo_desta.types import EncoderOutput, FrameGrid

FRAMES_PER_STEP = 16
HOP = FRAMES_PER_STEP * kaldi.HOP  # samples per step
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582  # of AudioSet; BEATs divides by twice the deviation
MAX_CHUNK_SECS = 30.0


class BeatsEncoder(FrozenEncoder):
    """Block outputs of a BEATs checkpoint.

    By default a clip's last window and last patch are completed with zeros so that no sample is lost, long clips are
    cut into equal chunks of whole patches, and padding is masked by the clip's own length: a clip in any batch equals
    the clip alone. With ``original_masks`` it computes as the original implementation: incomplete windows and patches
    are dropped, the padding mask is rounded in proportion to the batch, and nothing is cut.
    """

    def __init__(
        self,
        model: Beats,
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
        self.original_masks = self.depends_on_batch = original_masks
        self.chunk_steps = int(chunk_secs * kaldi.SAMPLING_RATE / HOP + 1e-6)
        self._fbank = kaldi.KaldiFbank()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        layer_ids: Iterable[int] | None = None,
        original_masks: bool = False,
        dtype: torch.dtype | str | None = None,
        *,
        chunk_secs: float = 10.24,
    ) -> "BeatsEncoder":
        """Load a public ``.pt``. ``layer_ids``: all blocks if None, later ones are not built; dtype: float32 if None.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a BEATs checkpoint, bad ``layer_ids``.
        """
        model = Beats.from_checkpoint(path, layer_ids).to(as_dtype(dtype))
        return cls(model, layer_ids=layer_ids, original_masks=original_masks, chunk_secs=chunk_secs)

    @property
    def label_dict(self) -> dict | None:
        """Class number -> name of a fine-tuned checkpoint."""
        return self.model.label_dict

    @classmethod
    def shape(
        cls, path: str | Path, layer_ids: Iterable[int] | None = None, original_masks: bool = False
    ) -> EncoderShape:
        """The shape of `from_checkpoint`'s encoder, from the checkpoint's ``cfg``; its tensors stay on disk."""
        config = BeatsConfig.from_dict(beats_checkpoint.load(path, mmap=True)["cfg"])
        return _shape(config, layer_ids, original_masks)

    def fbank(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> torch.Tensor:
        """Normalised filter bank of complete windows. audio: (B, S), audio_lens: (B,) -> (B, T, 128) float32.

        T counts the windows of S samples. Windows that reach beyond a clip are 0; with ``original_masks`` they are
        computed from the padded waveform.
        """
        features = self._normalised_fbank(audio)
        if self.original_masks:
            return features
        own = [kaldi.num_fbank_frames(length) for length in audio_lens.tolist()]
        return zero_beyond(features, torch.tensor(own, device=features.device))

    def classify(self, audio: torch.Tensor, audio_lens: torch.Tensor) -> torch.Tensor:
        """audio: (B, S), audio_lens: (B,) -> (B, classes) probabilities of a fine-tuned checkpoint's predictor.

        Raises:
            ValueError: no predictor in the checkpoint, or ``layer_ids`` leave out the last block that it reads.
        """
        if self.model.predictor is None or self.num_layers not in self.layer_ids:
            raise ValueError(
                f"classify needs a fine-tuned BEATs checkpoint and its last block, {self.num_layers}, among layer_ids "
                f"{list(self.layer_ids)}; the checkpoint is fine-tuned: {self.model.config.finetuned_model}"
            )
        layers, lens = self(audio, audio_lens)
        with torch.no_grad():
            return self.model.classify(layers[self.layer_ids.index(self.num_layers)], lens)

    def encode(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        """See `FrozenEncoder.encode`."""
        if self.original_masks:
            return self._encode_like_original(audio, lengths)
        steps = [_num_steps(length) for length in lengths]
        fbank = self._whole_fbank(audio, lengths, max(steps))
        chunks = plan_even(steps, self.chunk_steps)
        size = max(chunk.length for chunk in chunks)
        rows = cut(fbank, _scaled(chunks, FRAMES_PER_STEP), size * FRAMES_PER_STEP)  # (N, 16 * size, 128)
        token_lens = torch.tensor([chunk.length * BANDS_PER_STEP for chunk in chunks], device=audio.device)
        outputs = self.model(rows, token_lens)
        lens = [step * BANDS_PER_STEP for step in steps]
        layers = join([outputs[i - 1] for i in self.layer_ids], _scaled(chunks, BANDS_PER_STEP), lens)
        return EncoderOutput(layers, torch.tensor(lens, device=audio.device))

    def _encode_like_original(self, audio: torch.Tensor, lengths: list[int]) -> EncoderOutput:
        num_samples = audio.shape[1]
        num_frames = kaldi.num_fbank_frames(num_samples)
        num_tokens = BANDS_PER_STEP * (num_frames // FRAMES_PER_STEP)
        if num_tokens == 0:
            least = kaldi.WINDOW + (FRAMES_PER_STEP - 1) * kaldi.HOP
            raise ValueError(f"original_masks: {num_samples} samples fill no patch; the original needs {least}")
        # A frame counts as padding when all its num_samples // num_frames samples are, then tokens likewise.
        frames = [min(num_frames, _ceil(length, num_samples // num_frames)) for length in lengths]
        lens = [max(1, min(num_tokens, _ceil(frame, num_frames // num_tokens))) for frame in frames]
        token_lens = torch.tensor(lens, device=audio.device)
        outputs = self.model(self._normalised_fbank(audio), token_lens)
        return EncoderOutput(tuple(outputs[i - 1] for i in self.layer_ids), token_lens)

    def _whole_fbank(self, audio: torch.Tensor, lengths: list[int], num_steps: int) -> torch.Tensor:
        """(B, 16 * num_steps, 128): each clip's last window completed with silence, zeros from there on."""
        frames = [_num_frames(length) for length in lengths]
        num_samples = kaldi.WINDOW + (max(frames) - 1) * kaldi.HOP
        clips = cut(audio, [Chunk(clip, 0, length) for clip, length in enumerate(lengths)], num_samples)
        fbank = zero_beyond(self._normalised_fbank(clips), torch.tensor(frames, device=audio.device))
        return F.pad(fbank, (0, 0, 0, num_steps * FRAMES_PER_STEP - fbank.shape[1]))

    def _normalised_fbank(self, audio: torch.Tensor) -> torch.Tensor:
        return (self._fbank(audio) - FBANK_MEAN) / (2 * FBANK_STD)


def build_beats(
    path: str,
    layer_ids: Iterable[int] | None = None,
    original_masks: bool = False,
    chunk_secs: float = 10.24,
    dtype: torch.dtype | str | None = None,
) -> BeatsEncoder:
    """Config entry ``name: beats``; see `BeatsEncoder.from_checkpoint`."""
    return BeatsEncoder.from_checkpoint(path, layer_ids, original_masks, dtype, chunk_secs=chunk_secs)


build_beats.shape = BeatsEncoder.shape  # tells the sizes without loading weights


def _shape(config: BeatsConfig, layer_ids: Iterable[int] | None, original_masks: bool) -> EncoderShape:
    return EncoderShape(
        hidden_size=config.encoder_embed_dim,
        layer_ids=resolve_layer_ids(layer_ids, config.encoder_layers),
        num_layers=config.encoder_layers,
        frame_grid=FrameGrid(kaldi.SAMPLING_RATE, HOP, BANDS_PER_STEP, overlap=True),
        frames_of=_frames_like_original if original_masks else _frames,
    )


def _frames(num_samples: int) -> int:
    """8 frames for each step of 160 ms that the clip's windows reach, at least one step."""
    return BANDS_PER_STEP * _num_steps(num_samples)


def _frames_like_original(num_samples: int) -> int:
    """For a clip alone: 8 frames for each complete patch, which may be 0."""
    return BANDS_PER_STEP * (kaldi.num_fbank_frames(num_samples) // FRAMES_PER_STEP)


def _num_frames(num_samples: int) -> int:
    """Windows that cover every sample, the last one completed with silence."""
    return 1 + max(0, _ceil(num_samples - kaldi.WINDOW, kaldi.HOP))


def _num_steps(num_samples: int) -> int:
    return _ceil(_num_frames(num_samples), FRAMES_PER_STEP)


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)


def _scaled(chunks: list[Chunk], factor: int) -> list[Chunk]:
    return [Chunk(chunk.clip, chunk.start * factor, chunk.length * factor) for chunk in chunks]
