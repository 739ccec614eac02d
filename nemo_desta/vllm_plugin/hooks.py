"""What vLLM's own settings must be for a model folder; vLLM calls `ModelHooks` when it has read the config."""

from typing import Any

from nemo_desta.core.lora import LORA_FOLDER
from nemo_desta.errors import ConfigError
from nemo_desta.sources import resolve_source
from nemo_desta.vllm_plugin import TOKENIZER_MODE
from nemo_desta.vllm_plugin.served import served_folder, served_processor

#: vLLM's default rank limit of LoRA.
LORA_RANK = 16


class ModelHooks:
    """In the form of vLLM's ``VerifyAndUpdateConfig``."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Prompts are rendered by our renderer, and sampling defaults and end ids are the LLM's own.

        Raises:
            ConfigError: an option that would change prompts, or that this model does not have; see `served_processor`.
        """
        if model_config.tokenizer_mode not in ("auto", TOKENIZER_MODE):
            raise ConfigError(
                f"--tokenizer-mode {model_config.tokenizer_mode}: prompts of a nemo_desta model are rendered by its "
                f"own tokenizer mode; leave the option out (auto becomes {TOKENIZER_MODE})"
            )
        if model_config.multimodal_config is not None and model_config.multimodal_config.enable_mm_embeds:
            raise ConfigError("--enable-mm-embeds: this model takes audio, and no vectors made elsewhere")
        processor = served_processor(model_config)
        model_config.tokenizer_mode = TOKENIZER_MODE
        if model_config.generation_config == "auto":
            model_config.generation_config = resolve_source(processor.settings.llm.path)

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Check that a model that trained LoRA is not served without it.

        Raises:
            ConfigError: LoRA is switched off; the message has the options that switch it on.
        """
        model_config = vllm_config.model_config
        lora = served_processor(model_config).settings.llm.lora
        if lora is None or vllm_config.lora_config is not None:
            return
        folder = served_folder(model_config) / LORA_FOLDER
        if not folder.is_dir():
            raise ConfigError(f"this model trained LoRA, and '{folder}' is missing: export it (desta export)")
        rank = f" --max-lora-rank {lora.r}" if lora.r > LORA_RANK else ""
        raise ConfigError(
            "this model trained LoRA; without it the answers would be wrong. Give: --enable-lora"
            f'{rank} --default-mm-loras \'{{"audio": "{folder}"}}\''
        )
