"""Released DeSTA and ALARM weights as a NeMo model."""

from collections.abc import Mapping
from pathlib import Path

from nemo_desta.models.desta import DestaModel
from nemo_desta.sharing.released import read_released


def import_released(
    kind: str, folder: str | Path, *, llm: str | None = None, encoders: Mapping[str, str] | None = None
) -> DestaModel:
    """Open a released model; arguments and errors as `read_released`."""
    released = read_released(kind, folder, llm=llm, encoders=encoders)
    model = DestaModel(released.config)
    model.load_state_dict(released.tensors)
    return model.eval()
