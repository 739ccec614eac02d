"""A released model as our config and tensors, and the check that they fit each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_desta.config import LLMConfig, ModelConfig, PerceptionConfig, PromptConfig
from nemo_desta.core.folder import PROJECTOR_PREFIX
from nemo_desta.perception.encoders import EncoderShape
from nemo_desta.perception.encoders.whisper import GRID
from nemo_desta.perception.projector import build_projector


@dataclass(frozen=True)
class Released:
    """A released model. ``tensors``: of the projector, in float32, by their names in a checkpoint."""

    config: ModelConfig
    tensors: dict[str, Tensor]


def fit(
    llm: str,
    perception: PerceptionConfig,
    prompt: PromptConfig,
    tensors: Mapping[str, Tensor],
    *,
    widths: Mapping[str, int],
    output_size: int,
) -> Released:
    """Put a model together, and compare its tensors with the config's projector, built on the meta device.

    Args:
        tensors: by their names in the projector.
        widths: of the encoders.
        output_size: width of the LLM.

    Raises:
        ValueError: a tensor that is surplus, missing, or of another shape.
    """
    shapes = {name: _shape(width, perception.encoders[name]) for name, width in widths.items()}
    knobs = dict(perception.projector)
    with torch.device("meta"):
        own = build_projector(knobs.pop("name"), shapes, output_size, **knobs).state_dict()
    for name in [*own, *tensors]:
        if name not in tensors:
            raise ValueError(f"the released weights lack '{name}', which the projector has")
        if name not in own:
            raise ValueError(f"'{name}' of the released weights has no place in the projector")
        if own[name].shape != tensors[name].shape:
            found, expected = tuple(tensors[name].shape), tuple(own[name].shape)
            raise ValueError(f"'{name}' of the released weights is {found}, the projector's {expected}")
    prefixed = {
        PROJECTOR_PREFIX + name: tensor.long() if name.endswith("num_batches_tracked") else tensor.float()
        for name, tensor in tensors.items()
    }
    return Released(ModelConfig(llm=LLMConfig(path=llm), perception=perception, prompt=prompt), prefixed)


def _shape(width: int, encoder: Mapping[str, Any]) -> EncoderShape:
    layer_ids = tuple(encoder["layer_ids"])
    return EncoderShape(width, layer_ids, num_layers=max(layer_ids), frame_grid=GRID)
