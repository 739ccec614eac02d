"""The model folder that vLLM serves: its prompts and token counts, and its trained and frozen parts.

vLLM hands its ``ModelConfig`` over. Options that vLLM has no argument for are given by ``--hf-overrides``: ``llm``,
``encoders`` (places of the frozen parts), ``check_identity``, ``allow_targets``; see `OPTIONS`.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_desta.config import ModelConfig
from nemo_desta.core.folder import open_model
from nemo_desta.errors import ConfigError
from nemo_desta.hf.loading import model_folder
from nemo_desta.hf.processing import DestaProcessor

#: What ``--hf-overrides`` may hold, as of `SpeechLM.from_pretrained`.
OPTIONS = ("llm", "encoders", "check_identity", "allow_targets")


def served_folder(model_config: Any) -> Path:
    """The folder of ``model_config.model``, a path or hub id."""
    return model_folder(model_config.model, {"revision": model_config.revision})


def served_processor(model_config: Any) -> DestaProcessor:
    """Tokenizer, prompts and token counts. No weights are loaded; one per process.

    Raises:
        ConfigError: a folder whose tokenizer has no audio token, or whose LLM is not on this machine.
        UntrustedConfig: the config needs more than ``--trust-remote-code`` and ``allow_targets`` grant.
        FileNotFoundError: a frozen part that is not there.
    """
    config = model_config.hf_config
    options = _options(config)
    del options["check_identity"]
    options["trust_remote_code"] = model_config.trust_remote_code
    found = _processor(str(served_folder(model_config)), json.dumps(options, sort_keys=True))
    if config.text_config is None:
        raise ConfigError(f"no config of the LLM at '{found.settings.llm.path}', or one that needs Python code")
    if config.audio_token_index != found.audio_token_id:
        raise ConfigError(
            f"'{model_config.model}': the audio token of its tokenizer has id {found.audio_token_id}, its config.json "
            f"says {config.audio_token_index}. Export the model again (desta export)"
        )
    return found


def served_parts(model_config: Any) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config, with the frozen parts found on this machine, and trained tensors.

    Raises:
        IdentityMismatch: a frozen part that differs from the one of the training. Others as `served_processor`.
    """
    options = {**_options(model_config.hf_config), "trust_remote_code": model_config.trust_remote_code}
    return open_model(str(served_folder(model_config)), **options)


def _options(config: Any) -> dict[str, Any]:
    defaults = {"llm": None, "encoders": None, "check_identity": True, "allow_targets": ()}
    return {name: getattr(config, name, defaults[name]) for name in OPTIONS}


@lru_cache(maxsize=4)
def _processor(folder: str, options: str) -> DestaProcessor:
    return DestaProcessor.from_pretrained(folder, **json.loads(options))
