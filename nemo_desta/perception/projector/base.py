"""The base of every projector: from encoder frames to vectors of the LLM's width, with norm and markers at the end.

Letters: B clips, P windows of the whole batch, W vectors of the longest clip, D LLM width.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from nemo_desta.ops.windows import clip_and_window
from nemo_desta.perception.encoders.base import AudioEncoder, EncoderShape
from nemo_desta.perception.projector.markers import Markers
from nemo_desta.perception.resample import resampled_length
from nemo_desta.types import EncoderOutput

Encoders = Mapping[str, AudioEncoder | EncoderShape]


class Projector(nn.Module):
    """Base class: a subclass fuses and compresses in ``project`` and counts in ``num_vectors``.

    Weights are float32, whatever the encoders' dtype. A clip's vectors depend on that clip alone, never on padding or
    on other clips of the batch; ``tests/perception/projector/test_any_projector.py`` checks every registered one.
    ``reads_padding`` is for a released model that breaks this rule.
    """

    reads_padding = False

    def __init__(
        self,
        encoders: Encoders,
        output_size: int,
        *,
        markers: bool = False,
        output_norm: bool = False,
        output_rms: float | None = None,
    ):
        """Create the parts that all projectors share.

        Args:
            encoders: encoders or their shapes by name. A projector reads their ``hidden_size``, ``layer_ids``,
                ``frame_grid``, ``sampling_rate`` and ``num_frames``, and never owns their weights.
            output_size: D.
            markers: surround each clip with two learned vectors.
            output_norm: normalise every vector to zero mean and one learned RMS.
            output_rms: initial value of that RMS (1 if None) and of the markers' RMS; best the RMS of the LLM's
                embedding table.

        Raises:
            ValueError: no encoder.
        """
        super().__init__()
        if not encoders:
            raise ValueError("a projector needs at least one encoder, found none")
        self.output_size = output_size
        self._encoders = dict(encoders)  # a plain dict: so nn.Module does not register the encoders' weights
        self.gain = nn.Parameter(torch.tensor([output_rms or 1.0])) if output_norm else None
        self.markers = Markers(output_size, output_rms) if markers else None

    def forward(
        self, features: dict[str, EncoderOutput], *, audio_lens: torch.Tensor, sampling_rate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project a batch.

        Args:
            features: one output per encoder of the constructor.
            audio_lens: (B,) int64, samples of each clip at ``sampling_rate``.
            sampling_rate: of ``audio_lens``; encoders may have got the audio at another one.

        Returns:
            vectors (B, W, D) and lens (B,) int64; vectors beyond a clip's length have no meaning.
        """
        vectors, lens = self.project(features, audio_lens, sampling_rate)
        if self.gain is not None:
            vectors = F.layer_norm(vectors, vectors.shape[-1:]) * self.gain
        return (vectors, lens) if self.markers is None else self.markers(vectors, lens)

    def num_tokens(self, num_samples: int, sampling_rate: int) -> int:
        """Exact number of vectors of one clip, markers included."""
        return self.num_vectors(num_samples, sampling_rate) + (0 if self.markers is None else self.markers.count)

    def project(
        self, features: dict[str, EncoderOutput], audio_lens: torch.Tensor, sampling_rate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (B, W, D) before norm and markers, and lens (B,)."""
        raise NotImplementedError

    def num_vectors(self, num_samples: int, sampling_rate: int) -> int:
        """Vectors of one clip, without markers."""
        raise NotImplementedError

    def calibrate(self, features: Iterable[dict[str, EncoderOutput]]) -> None:
        """Set the input norm from batches of the encoders' outputs, so that every channel starts standardised.

        Raises:
            NotImplementedError: the projector has no such norm. ValueError: no batch.
        """
        raise NotImplementedError(f"{type(self).__name__} has no calibration")

    def num_frames(self, name: str, num_samples: int, sampling_rate: int) -> int:
        """Frames that an encoder returns for a clip of ``num_samples`` samples at ``sampling_rate``."""
        encoder = self._encoders[name]
        return encoder.num_frames(resampled_length(num_samples, sampling_rate, encoder.sampling_rate))


def list_parts(projector: nn.Module) -> str:
    """The projector's parts, one for each encoder where there are such, and their parameters, in one line."""
    sizes: dict[str, int] = {}
    for name, parameter in projector.named_parameters():
        part, _, rest = name.partition(".")
        if isinstance(getattr(projector, part), nn.ModuleDict):
            part = f"{part}.{rest.partition('.')[0]}"
        part += "" if parameter.requires_grad else " (frozen)"
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    return ", ".join(f"{part} {size:,}" for part, size in sizes.items())


def pad_packed(packed: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
    """(P, ...) rows of all clips one after another -> (B, W, ...), zero beyond each clip's rows."""
    clip, row = clip_and_window(lens, packed.shape[0])
    padded = packed.new_zeros(len(lens), int(lens.max()), *packed.shape[1:])
    return padded.index_put((clip, row), packed)
