"""The audio encoder inside a checkpoint of transformers: which module it is, its blocks, its weights.

Only architectures that the installed transformers has itself; code from a model's folder is never run. Of a composite
(an audio LLM, an encoder with its decoder) the audio encoder alone is built and read.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, PretrainedConfig

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.weights import load_part

#: Where the config of a composite keeps that of its audio encoder.
AUDIO_CONFIGS = ("audio_config", "audio_encoder_config", "encoder_config")
#: Names of a config for the number of its encoder's blocks.
DEPTHS = ("num_hidden_layers", "encoder_layers", "encoder_num_hidden_layers", "conf_num_hidden_layers")
TWO_DIMENSIONAL = "its tokens are patches of time and frequency, not one line in time"
#: Model types that are refused, and why.
REFUSED = {
    "audio-spectrogram-transformer": TWO_DIMENSIONAL,
    "clap": TWO_DIMENSIONAL,
    "clap_audio_model": TWO_DIMENSIONAL,
    "speecht5": "its input layer lies outside its encoder",
    "qwen3_asr_encoder": "its frames come in uneven steps, 13 in a second",
}
#: A parameter that only pre-training reads.
UNUSED = "masked_spec_embed"


@dataclass(frozen=True)
class HFCheckpoint:
    """An audio encoder of transformers. ``build``: a module with random weights, on the current device."""

    path: str
    config: PretrainedConfig
    build: Callable[[PretrainedConfig], nn.Module]

    @property
    def model_type(self) -> str:
        """Transformers' name of the architecture."""
        return self.config.model_type

    def outline(self) -> nn.Module:
        """The whole encoder without values."""
        with torch.device("meta"):
            return self.build(self.config)

    def shallow(self, num_layers: int) -> nn.Module:
        """An encoder of ``num_layers`` blocks with random weights on the CPU: what it computes has the true shapes."""
        config = copy.deepcopy(self.config)
        for name in DEPTHS:
            if hasattr(config, name):
                setattr(config, name, num_layers)
        with torch.device("cpu"):
            return self.build(config).eval().requires_grad_(False)

    def load(self, dtype: torch.dtype) -> nn.Module:
        """The encoder with its weights, on the CPU.

        Raises:
            FileNotFoundError: no weights. ValueError: a tensor is missing.
        """
        outline = self.outline()
        tensors = load_part(self.path, outline.state_dict().keys(), optional=(UNUSED,))
        options = {"config": self.config, "state_dict": tensors, "dtype": dtype}
        return type(outline).from_pretrained(None, **options)


def open_checkpoint(path: str) -> HFCheckpoint:
    """Find the audio encoder of a folder or hub id.

    Raises:
        ConfigError: transformers has no such architecture, or it has no audio encoder on one time line.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"'{path}': transformers {transformers.__version__} has no such model itself, and code from a model's "
            f"folder is not run ({' '.join(str(error).split())[:300]})"
        ) from error
    whole = config
    for name in AUDIO_CONFIGS:
        inner = getattr(whole, name, None)
        if isinstance(inner, PretrainedConfig) and type(inner) in MODEL_MAPPING:
            config = inner
            break
    for model_type in (whole.model_type, config.model_type):
        if model_type in REFUSED:
            raise ConfigError(f"'{path}': {model_type} cannot be an encoder here: {REFUSED[model_type]}")
    if type(config) not in MODEL_MAPPING:
        raise ConfigError(f"'{path}': transformers' auto classes have no audio encoder for '{config.model_type}'")
    model_class = MODEL_MAPPING[type(config)]

    def build(config: PretrainedConfig) -> nn.Module:
        model = model_class(config)
        return model.get_encoder() if config.is_encoder_decoder else model

    return HFCheckpoint(path, config, build)


def blocks_of(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of an encoder's blocks: the one outermost list whose every module has attention.

    Raises:
        ConfigError: there is none, or more than one of the config's length.
    """
    found = {name: module for name, module in encoder.named_modules() if _are_blocks(module)}
    outer = {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}
    if len(outer) > 1:
        depths = {getattr(encoder.config, name, None) for name in DEPTHS}
        outer = {name: module for name, module in outer.items() if len(module) in depths}
    if len(outer) != 1:
        raise ConfigError(
            f"'{encoder.config.model_type}' has {len(outer)} lists of attention blocks "
            f"({', '.join(outer) or 'none'}); an encoder needs exactly one"
        )
    return next(iter(outer.items()))


def _are_blocks(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.ModuleList)
        and len(module) > 0
        and all(any("Attention" in type(part).__name__ for part in block.modules()) for block in module)
    )
