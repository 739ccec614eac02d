"""The registries of encoders and projectors. Their names are known without torch."""

from nemo_desta.registry import Registry

_ENCODERS, _PROJECTORS = "nemo_desta.perception.encoders", "nemo_desta.perception.projector"

ENCODERS = Registry(
    "encoder",
    "nemo_desta.encoders",
    {"whisper": f"{_ENCODERS}.whisper:build_whisper", "beats": f"{_ENCODERS}.beats:build_beats"},
)
PROJECTORS = Registry(
    "projector",
    "nemo_desta.projectors",
    {
        "window": f"{_PROJECTORS}.window:WindowProjector",
        "conv": f"{_PROJECTORS}.conv:ConvProjector",
        "qformer": f"{_PROJECTORS}.qformer:QFormerProjector",
        "window_qformer": f"{_PROJECTORS}.window_qformer:WindowQFormerProjector",
    },
)
