"""The config of a model folder as a config of transformers: it reads the folder's config.json as it is."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from nemo_desta.config import ModelConfig, parse
from nemo_desta.core.tokenizers import MODEL_TYPE
from nemo_desta.core.trust import NOTHING, Grant, check_model
from nemo_desta.sources import resolve_source


class DestaConfig(PretrainedConfig):
    """A model folder's config.json.

    Args:
        format, model, frozen: see `nemo_desta.core.folder`; ``model`` is a `ModelConfig` as a mapping.
        audio_token, audio_token_index: the token that holds an audio's positions, and its id, which may lie beyond the
            LLM's vocabulary. None: this folder's tokenizer has no such token.
        text_config: the LLM's own config; read from the LLM's folder if it is not given.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        format: int | None = None,
        model: Mapping[str, Any] | None = None,
        frozen: Mapping[str, Any] | None = None,
        audio_token: str | None = None,
        audio_token_index: int | None = None,
        text_config: PretrainedConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.format = format
        self.model = None if model is None else dict(model)
        self.frozen = dict(frozen or {})
        self.audio_token = audio_token
        self.audio_token_index = audio_token_index
        self._text_config = text_config  # transformers' constructor reads it
        super().__init__(**kwargs)

    @property
    def text_config(self) -> PretrainedConfig | None:
        """The LLM's config. None if the LLM is not on this machine, or if its config needs Python code."""
        if self._text_config is None and self.model is not None:
            try:
                path = self.llm or self.model["llm"]["path"]
                self._text_config = AutoConfig.from_pretrained(resolve_source(path), trust_remote_code=False)
            except (OSError, ValueError):
                return None
        return self._text_config

    @text_config.setter
    def text_config(self, config: PretrainedConfig) -> None:
        self._text_config = config

    @property
    def llm(self) -> str | None:
        """Where the LLM is on this machine, if not where ``model`` says; vLLM sets it (``--hf-overrides``)."""
        return getattr(self, "_llm", None)

    @llm.setter
    def llm(self, path: str | None) -> None:
        self._llm, self._text_config = path, None

    def settings(self, grant: Grant = NOTHING) -> ModelConfig:
        """``model`` as a checked `ModelConfig`.

        Raises:
            ConfigError: no ``model``. UntrustedConfig: it needs more than ``grant`` allows.
        """
        return parse(ModelConfig, check_model(self.model, self.name_or_path or "the config", grant))

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json; the LLM's config is not part of it."""
        values = super().to_dict()
        for name in ("_text_config", "_llm"):
            values.pop(name, None)
        return values
