"""Memory and FLOPs of encoders and projector on pipeline stage 0. Letters: C encoder width, T frames, D LLM width.

The real encoders of conf/encoders/ and any registered projector are built without weights, and a clip runs through
them (`nemo_desta.perception.dry_run`). Only the working memory of an encoder is a formula.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError

if TYPE_CHECKING:  # torch's and transformers' parts of it take seconds to import
    from nemo_desta.perception.dry_run import Cost

FRAMES_PER_SECOND = 50  # Whisper; also BEATs: 8 patches every 160 ms
SAMPLING_RATE = 16_000
#: Numbers per trained parameter: weight, gradient and AdamW's two moments; the projector's are float32.
STATES, FLOAT32 = 4, 4


class Encoder(NamedTuple):
    """Sizes of a frozen encoder with MLPs of 4 C. ``window_secs``: it pads to that length. ``tapped``: layers read.

    ``mel_bands``: Whisper's. ``score_heads``: attention heads whose (T, T) scores are in memory. BEATs' position bias
    depends on the query, so fused attention reads it as a mask.
    """

    width: int
    depth: int
    mel_bands: int = 0
    window_secs: float = 30.0
    score_heads: int = 0
    tapped: int = 4

    @property
    def layer_ids(self) -> list[int]:
        return [self.depth * tap // self.tapped for tap in range(1, self.tapped + 1)]


#: openai/whisper-* and the base model of the BEATs paper.
ENCODERS = {
    "whisper-small": Encoder(768, 12, 80),
    "whisper-medium": Encoder(1024, 24, 80),
    "whisper-large-v3": Encoder(1280, 32, 128),
    "beats": Encoder(768, 12, window_secs=10.24, score_heads=12),
}
#: Value of --encoders -> the option of conf/encoders/.
CONFIGS = {
    "whisper-small": "whisper_small",
    "whisper-large-v3": "whisper_large_v3",
    "whisper-large-v3+beats": "whisper_large_v3_beats",
}
#: Options of conf/projector/ that are not a registered name with its defaults.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"qformer_2l": ("qformer", {"num_layers": 2})}


@dataclass(frozen=True)
class Perception:
    """Encoders and projector. ``frozen``, ``trained``: parameters; ``cost``: of a clip of the asked length;
    ``feature_bytes``: of an hour of audio in the feature cache."""

    encoders: tuple[Encoder, ...] = ()
    frozen: int = 0
    trained: int = 0
    cost: "Cost | None" = None
    feature_bytes: int = 0

    @property
    def kept(self) -> int:
        """Bytes per clip that the projector's backward keeps."""
        return self.cost.kept if self.cost else 0

    @property
    def vectors(self) -> int:
        """Positions per clip."""
        return self.cost.vectors if self.cost else 0

    @property
    def flops(self) -> tuple[int, int]:
        """Per clip: the encoders', the projector's."""
        return (self.cost.encoder_flops, self.cost.projector_flops) if self.cost else (0, 0)


@functools.cache
def perceive(names: str, projector: str, output_size: int, secs: float, dtype: str = "bfloat16") -> Perception:
    """What the encoders ``a+b`` (none for "none") and a projector into an LLM of width ``output_size`` need.

    Args:
        secs: of the clip that runs through them.

    Raises:
        ConfigError: an unknown encoder or projector, or a projector that these encoders do not fit.
    """
    found = names.split("+") if names != "none" else []
    for name in found:
        if name not in ENCODERS:
            raise ConfigError(f"unknown encoder '{name}'.{nearest(name, ENCODERS)}")
    if not found:
        return Perception()
    import torch

    from nemo_desta.perception.dry_run import dry_run
    from nemo_desta.perception.feature_cache import feature_bytes
    from nemo_desta.perception.projector import build_projector

    kind, knobs = VARIANTS.get(projector, (projector, {}))
    with torch.device("meta"):
        encoders = {name: _build(ENCODERS[name]).to(getattr(torch, dtype)) for name in found}
        try:
            built = build_projector(kind, encoders, output_size, output_rms=1.0, **knobs)
        except ValueError as error:
            raise ConfigError(f"--projector={projector} with --encoders={names}: {error}") from error
    return Perception(
        tuple(ENCODERS[name] for name in found),
        sum(map(_numel, encoders.values())),
        _numel(built),
        dry_run(encoders, built, secs, SAMPLING_RATE),
        sum(feature_bytes(encoder, 3600 * SAMPLING_RATE, "auto") for encoder in encoders.values()),
    )


def working_bytes(encoders: tuple[Encoder, ...], clips: int, secs: float, width: int) -> int:
    """Temporary memory while encoders run: the largest block, its MLP, BEATs' scores, the chosen layers."""
    largest = 0
    for encoder in encoders:
        chunks = clips * -(-secs // encoder.window_secs)
        frames = encoder.window_secs * FRAMES_PER_SECOND
        block = frames * (2 * 4 * encoder.width + (4 + encoder.tapped) * encoder.width)
        largest = max(largest, int(chunks * width * (block + 4 * encoder.score_heads * frames * frames)))
    return largest


def _numel(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _build(encoder: Encoder) -> Any:
    """The encoder itself, without weights inside ``torch.device("meta")``."""
    if not encoder.mel_bands:
        from nemo_desta.perception.encoders import BeatsEncoder
        from nemo_desta.perception.encoders.beats_model import Beats, BeatsConfig

        return BeatsEncoder(Beats(BeatsConfig()), layer_ids=encoder.layer_ids)
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Model

    from nemo_desta.perception.encoders import WhisperEncoder

    sizes = {"encoder_layers": encoder.depth, "encoder_attention_heads": encoder.width // 64}
    config = WhisperConfig(
        d_model=encoder.width, encoder_ffn_dim=4 * encoder.width, num_mel_bins=encoder.mel_bands, **sizes
    )
    return WhisperEncoder(Model(config), num_layers=encoder.depth, layer_ids=encoder.layer_ids)
