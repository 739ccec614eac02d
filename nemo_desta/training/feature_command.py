"""The job ``desta features``: fills the feature cache of a training config. No LLM is loaded."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import ModelConfig, check_keys, parse
from nemo_desta.core.feature_identity import open_feature_cache
from nemo_desta.data.settings import parse_data
from nemo_desta.errors import ConfigError
from nemo_desta.perception.build import audio_rates, build_encoders, build_projector_for
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.training.feature_precompute import list_clips, precompute
from nemo_desta.training.preflight import MissingParts, missing_data, missing_weights
from nemo_desta.training.sections import SECTIONS, VALUES
from nemo_desta.types import first_rate

#: Any width will do: the projector is built on the meta device, to see whether its features can be cached.
ANY_WIDTH = 1024


def run_features(cfg: DictConfig) -> str:
    """Encode all clips of the config's training and validation rows; returns what was done.

    Raises:
        ConfigError: no ``data.feature_cache``, or parts that cannot be cached. MissingParts: no data or encoders.
    """
    check_keys(cfg, (*SECTIONS, *VALUES), "config")
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    config, data = parse(ModelConfig, settings["model"]), parse_data(settings["data"])
    if data.feature_cache is None:
        raise ConfigError("'data.feature_cache' is null: give {folder: ...} to this command and to the training")
    problems = [text for text in missing_weights(config) if not text.startswith("model.llm")]
    if problems := [*problems, *missing_data(settings["data"])]:
        raise MissingParts(problems)
    cache = open_feature_cache(data.feature_cache, config)
    encoders = build_encoders(config.perception)
    with torch.device("meta"):
        projector = build_projector_for(config.perception, encoders, ANY_WIDTH)
    rate = first_rate(audio_rates(config.perception, encoders))
    perception = FusedPerception(encoders, projector, rate, normalize_dbfs=config.perception.normalize_dbfs)
    perception.feature_cache = cache
    use_gpu = torch.cuda.is_available() and (settings.get("trainer") or {}).get("accelerator") != "cpu"
    device = torch.device("cuda" if use_gpu else "cpu")
    perception.encoders.to(device)
    clips = list_clips(data, audio_role=config.prompt.audio_role, sampling_rate=rate)
    count = precompute(perception, clips, device=device)
    return f"{count:,} of {len(clips):,} clips were encoded, the others were in {cache.folder}"
