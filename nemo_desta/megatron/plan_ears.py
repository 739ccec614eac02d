"""Bytes of encoders and projector on pipeline stage 0. Letters: C encoder width, F its MLP's, T frames, D LLM width.

The window projector of conf/projector/window.yaml is what is counted, and the encoders of conf/encoders/.
"""

from dataclasses import dataclass

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError

FRAMES_PER_SECOND = 50  # of Whisper, and of BEATs: 8 patches every 160 ms
TOKENS_PER_SECOND = 6.25
#: Bytes per trained number: float32 weight, gradient and AdamW's two moments.
TRAINED = 16
FLOAT32 = 4


@dataclass(frozen=True)
class Encoder:
    """Sizes of a frozen encoder. ``taps``: layers that the projector reads. ``window_secs``: it pads to that."""

    numbers: int
    width: int
    mlp_width: int
    window_secs: float
    scores: int = 0  # heads whose scores are held: BEATs has a bias per query that fused attention reads as a mask
    taps: int = 4


def _whisper(layers: int, width: int, num_mels: int) -> Encoder:
    """Whisper's encoder of ``layers`` blocks, without its final norm; weights as in transformers' WhisperEncoder."""
    mlp = 4 * width
    convolutions = 3 * num_mels * width + width + 3 * width * width + width
    block = 4 * width * width + 3 * width + 2 * width * mlp + mlp + width + 4 * width
    return Encoder(convolutions + 1500 * width + layers * block, width, mlp, window_secs=30.0)


def _beats(layers: int = 12, width: int = 768, mlp: int = 3072, heads: int = 12, patch_width: int = 512) -> Encoder:
    """BEATs base; weights as in perception/encoders/beats_model.py."""
    start = patch_width * 16 * 16 + 2 * patch_width + patch_width * width + width
    positions = width * (width // 16) * 128 + 128 + width
    gate = 8 * (width // heads) + 8 + heads
    block = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width + gate
    return Encoder(
        start + positions + 2 * width + 320 * heads + layers * block, width, mlp, window_secs=10.24, scores=heads
    )


#: Name -> sizes, from the public configs (openai/whisper-*, the BEATs paper's base model).
ENCODERS = {
    "whisper-small": _whisper(12, 768, 80),
    "whisper-medium": _whisper(24, 1024, 80),
    "whisper-large-v3": _whisper(32, 1280, 128),
    "beats": _beats(),
}
#: What --encoders may be -> the option of conf/encoders/.
CONFIGS = {
    "whisper-small": "whisper_small",
    "whisper-large-v3": "whisper_large_v3",
    "whisper-large-v3+beats": "whisper_large_v3_beats",
}


def find_encoders(names: str) -> tuple[Encoder, ...]:
    """The encoders of ``a+b``; none for "none".

    Raises:
        ConfigError: a name that is not in `ENCODERS`.
    """
    if names == "none":
        return ()
    for name in names.split("+"):
        if name not in ENCODERS:
            raise ConfigError(f"unknown encoder '{name}'.{nearest(name, ENCODERS)}")
    return tuple(ENCODERS[name] for name in names.split("+"))


def projector_numbers(encoders: tuple[Encoder, ...], output_size: int) -> int:
    """Trained numbers of the window projector: a pool per encoder (one query, one window's frames), an MLP, a gain."""
    if not encoders:
        return 0
    frames = round(FRAMES_PER_SECOND / TOKENS_PER_SECOND)
    pools = sum(encoder.taps + 3 * encoder.width + frames for encoder in encoders)
    width = sum(encoder.width for encoder in encoders)
    return pools + (width + 1) * output_size + (output_size + 1) * output_size + 1


def kept_bytes(encoders: tuple[Encoder, ...], clips: int, secs: float, output_size: int, width: int) -> int:
    """What the projector's backward keeps of a rank's ``clips``: tapped layers, and the MLP's inputs in float32."""
    if not encoders:
        return 0
    frames = clips * secs * FRAMES_PER_SECOND
    taps = sum(frames * encoder.taps * encoder.width * width for encoder in encoders)
    vectors = clips * secs * TOKENS_PER_SECOND
    return int(taps + vectors * FLOAT32 * (sum(encoder.width for encoder in encoders) + 4 * output_size))


def working_bytes(encoders: tuple[Encoder, ...], clips: int, secs: float, width: int) -> int:
    """What comes and goes while the encoders run: the largest block, its MLP and (BEATs) its scores, and the taps."""
    largest = 0
    for encoder in encoders:
        chunks = clips * -(-secs // encoder.window_secs)
        frames = encoder.window_secs * FRAMES_PER_SECOND
        block = frames * width * (2 * encoder.mlp_width + (4 + encoder.taps) * encoder.width)
        largest = max(largest, int(chunks * (block + 4 * encoder.scores * frames * frames * width)))
    return largest
