"""The registries of encoders and projectors. Their names are known without torch."""

from nemo_desta.registry import Registry

ENCODERS = Registry(
    "encoder",
    "nemo_desta.encoders",
    {
        "whisper": "nemo_desta.perception.encoders.whisper:build_whisper",
        "beats": "nemo_desta.perception.encoders.beats:build_beats",
        "muq": "nemo_desta.perception.encoders.muq:build_muq",
        "eat": "nemo_desta.perception.encoders.eat:build_eat",
        "hf": "nemo_desta.perception.encoders.hf:build_hf",
        "w2vbert": "nemo_desta.perception.encoders.hf:build_w2vbert",
    },
)
PROJECTORS = Registry(
    "projector",
    "nemo_desta.projectors",
    {
        "window": "nemo_desta.perception.projector.window:WindowProjector",
        "conv": "nemo_desta.perception.projector.conv:ConvProjector",
        "qformer": "nemo_desta.perception.projector.qformer:QFormerProjector",
        "window_qformer": "nemo_desta.perception.projector.window_qformer:WindowQFormerProjector",
        "ensemble": "nemo_desta.perception.projector.ensemble:EnsembleProjector",
    },
)
