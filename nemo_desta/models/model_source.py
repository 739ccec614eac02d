"""The settings that name a trained model, and how it is loaded: shared by chat, server and evaluation."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemo_desta.config import MISSING, FeatureCacheConfig, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.screen import silence_imports
from nemo_desta.sources import why_missing

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

ENGINES = ("hf", "vllm")


def check_engine(engine: str, vllm: dict[str, Any], prefix: str = "") -> None:
    """Raises ConfigError for an unknown engine, or for arguments of vLLM with another engine."""
    if engine not in ENGINES:
        raise ConfigError(f"unknown {prefix}engine '{engine}'.{nearest(engine, ENGINES)}")
    if vllm and engine != "vllm":
        raise ConfigError(f"{prefix}vllm is for {prefix}engine=vllm")


@dataclass(frozen=True)
class ModelSource:
    """``model``: a folder or hub id. ``feature_cache``: null is off. The other fields are arguments of
    `DestaModel.from_pretrained`."""

    model: str = MISSING
    llm: str | None = None
    encoders: dict[str, str] | None = None
    device: str | None = None
    check_identity: bool = True
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)
    feature_cache: FeatureCacheConfig | None = None

    def load(self) -> "DestaModel":
        """The model with its LLM in this process."""
        self._check()
        with silence_imports():
            from nemo_desta.core.build import hide_loading_bars
            from nemo_desta.models.desta import DestaModel
        hide_loading_bars()
        model = DestaModel.from_pretrained(self.model, device=self.device, **self._arguments)
        if self.feature_cache is not None:
            from nemo_desta.core.feature_identity import open_feature_cache

            model.perception.feature_cache = open_feature_cache(self.feature_cache, model.config)
        return model

    def for_vllm(self) -> dict[str, Any]:
        """Arguments of `vllm_arguments`.

        Raises:
            ConfigError: a setting that vLLM has no use for. FileNotFoundError: no such model.
        """
        self._check()
        for name, instead in (("device", "vLLM uses all visible GPUs"), ("feature_cache", "vLLM has its own cache")):
            if getattr(self, name) is not None:
                raise ConfigError(f"'{name}' is for engine=hf; {instead}")
        return {"folder": self.model, **self._arguments}

    def _check(self) -> None:
        """A wrong path is named before NeMo is imported, which takes seconds. Nothing is computed before questions."""
        if self.feature_cache is not None and self.feature_cache.precompute:
            raise ConfigError(
                "feature_cache.precompute is for training (desta features); here clips are cached as used"
            )
        if reason := why_missing(self.model):
            raise FileNotFoundError(reason)

    @property
    def _arguments(self) -> dict[str, Any]:
        names = ("llm", "encoders", "check_identity", "trust_remote_code", "allow_targets")
        return {name: getattr(self, name) for name in names}
