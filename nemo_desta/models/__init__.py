"""The NeMo model."""

from typing import Any

__all__ = ["DestaModel"]


def __getattr__(name: str) -> Any:
    if name == "DestaModel":  # on first use: importing NeMo's collections takes seconds
        from nemo_desta.models.desta import DestaModel

        return DestaModel
    raise AttributeError(f"module 'nemo_desta.models' has no attribute '{name}'")
