"""The model and all that it is made of, without a trainer: torch and transformers only."""

from typing import Any

__all__ = ["SpeechLM"]


def __getattr__(name: str) -> Any:
    if name == "SpeechLM":  # on first use: modules of this package are imported by rooms that need no LLM
        from nemo_desta.core.model import SpeechLM

        return SpeechLM
    raise AttributeError(f"module 'nemo_desta.core' has no attribute '{name}'")
