"""The settings that name a trained model, and how it is loaded: shared by chat, server and evaluation."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemo_desta.config import MISSING, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.screen import silence_imports
from nemo_desta.sources import why_missing

if TYPE_CHECKING:
    from nemo_desta.answering.engine import ChatEngine
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
    """``model``: a folder or hub id. The other fields are arguments of `DestaModel.from_pretrained`."""

    model: str = MISSING
    llm: str | None = None
    encoders: dict[str, str] | None = None
    device: str | None = None
    check_identity: bool = True
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)

    def load(self) -> "DestaModel":
        """The model with its LLM in this process."""
        self._check()
        with silence_imports():
            from nemo_desta.core.build import hide_loading_bars
            from nemo_desta.models.desta import DestaModel
        hide_loading_bars()
        return DestaModel.from_pretrained(self.model, device=self.device, **self._arguments)

    def load_with_vllm(self, **engine_args: Any) -> "ChatEngine":
        """An engine whose LLM runs in vLLM; see `vllm_chat_engine`."""
        self._check()
        with silence_imports():
            from nemo_desta.answering.vllm_decoder import vllm_chat_engine
            from nemo_desta.core.build import hide_loading_bars
        hide_loading_bars()
        return vllm_chat_engine(self.model, **self._arguments, **engine_args)

    def _check(self) -> None:
        """A wrong path is named before NeMo is imported, which takes seconds."""
        if reason := why_missing(self.model):
            raise FileNotFoundError(reason)

    @property
    def _arguments(self) -> dict[str, Any]:
        names = ("llm", "encoders", "check_identity", "trust_remote_code", "allow_targets")
        return {name: getattr(self, name) for name in names}
