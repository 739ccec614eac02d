"""Model folders in vLLM: ``vllm serve <folder>``. vLLM calls `register` in each of its processes.

The folder's class in vLLM is `model`, its inputs are made by `processing`, its prompts by `renderer`: those of
`PromptBuilder`, as everywhere in this package. `chat` and `decoder` are ``engine=vllm`` of chat and evaluation. This
room needs vLLM 0.32 and no trainer (docs/vllm.md).
"""

import logging

logger = logging.getLogger(__name__)

#: vLLM's name of our tokenizer and renderer (``--tokenizer-mode``); `ModelHooks` chooses it.
TOKENIZER_MODE = "nemo_desta"


def register() -> None:
    """Tell vLLM about the class of model folders. Without effect, but logged, if this vLLM has other interfaces: an
    error here would end every start of vLLM, also one with another model."""
    try:
        _register()
    except Exception as error:
        logger.warning(
            "nemo_desta: model folders cannot be served by this vLLM (%s: %.300s)", type(error).__name__, error
        )


def _register() -> None:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from nemo_desta.core.folder import ARCHITECTURE
    from nemo_desta.hf.configuration import DestaConfig
    from nemo_desta.vllm_plugin.hooks import ModelHooks

    _CONFIG_REGISTRY[DestaConfig.model_type] = DestaConfig
    MODELS_CONFIG_MAP[ARCHITECTURE] = ModelHooks
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"nemo_desta.vllm_plugin.model:{ARCHITECTURE}")
    if TOKENIZER_MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(TOKENIZER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    if TOKENIZER_MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(TOKENIZER_MODE, "nemo_desta.vllm_plugin.renderer", "DestaRenderer")
