"""Memory of encoders and projector on pipeline stage 0. Letters: C encoder width, T frames, D LLM width.

The projector is the window projector of conf/projector/window.yaml, the encoders are those of conf/encoders/. A test
compares the parameter counts with the real modules, which take seconds to import.
"""

from typing import NamedTuple

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError

FRAMES_PER_SECOND = 50  # Whisper; also BEATs: 8 patches every 160 ms
TOKENS_PER_SECOND = 6.25
#: Bytes per trained parameter: float32 weight, gradient and AdamW's two moments.
TRAINED = 16
FLOAT32 = 4


class Encoder(NamedTuple):
    """Sizes of a frozen encoder. ``layers``: those that the projector reads. ``window_secs``: it pads to that length.

    ``score_heads``: attention heads whose (T, T) scores are in memory. BEATs' position bias depends on the query, so
    fused attention reads it as a mask.
    """

    parameters: int
    width: int
    mlp_width: int
    window_secs: float = 30.0
    score_heads: int = 0
    layers: int = 4


#: openai/whisper-* without the final norm, and the base model of the BEATs paper.
ENCODERS = {
    "whisper-small": Encoder(88_152_576, 768, 3072),
    "whisper-medium": Encoder(307_214_336, 1024, 4096),
    "whisper-large-v3": Encoder(636_966_400, 1280, 5120),
    "beats": Encoder(90_311_792, 768, 3072, window_secs=10.24, score_heads=12),
}
#: Value of --encoders -> the option of conf/encoders/.
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
    found = names.split("+") if names != "none" else []
    for name in found:
        if name not in ENCODERS:
            raise ConfigError(f"unknown encoder '{name}'.{nearest(name, ENCODERS)}")
    return tuple(ENCODERS[name] for name in found)


def projector_parameters(encoders: tuple[Encoder, ...], output_size: int) -> int:
    """Trained parameters: a pool per encoder (one query, positions of a window's frames), an MLP, a gain."""
    if not encoders:
        return 0
    frames = round(FRAMES_PER_SECOND / TOKENS_PER_SECOND)
    pools = sum(encoder.layers + 3 * encoder.width + frames for encoder in encoders)
    width = sum(encoder.width for encoder in encoders)
    return pools + (width + 1) * output_size + (output_size + 1) * output_size + 1


def kept_bytes(encoders: tuple[Encoder, ...], clips: int, secs: float, output_size: int, width: int) -> int:
    """What the projector's backward keeps of a rank's ``clips``: encoder layers, and the MLP's inputs in float32."""
    if not encoders:
        return 0
    layers = sum(encoder.layers * encoder.width for encoder in encoders) * FRAMES_PER_SECOND * width
    mlp = (sum(encoder.width for encoder in encoders) + 4 * output_size) * TOKENS_PER_SECOND * FLOAT32
    return int(clips * secs * (layers + mlp))


def working_bytes(encoders: tuple[Encoder, ...], clips: int, secs: float, width: int) -> int:
    """Temporary memory while encoders run: the largest block, its MLP, BEATs' scores, the chosen layers."""
    largest = 0
    for encoder in encoders:
        chunks = clips * -(-secs // encoder.window_secs)
        frames = encoder.window_secs * FRAMES_PER_SECOND
        block = frames * (2 * encoder.mlp_width + (4 + encoder.layers) * encoder.width)
        largest = max(largest, int(chunks * width * (block + 4 * encoder.score_heads * frames * frames)))
    return largest
