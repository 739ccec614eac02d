"""Released DeSTA and ALARM weights as a NeMo model."""

from collections.abc import Mapping
from pathlib import Path

from nemo_desta.models.desta import DestaModel
from nemo_desta.sharing.released import read_released


def import_released(
    kind: str,
    folder: str | Path,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
    original_masks: bool = False,
    encoder_folder: str | Path | None = None,
) -> DestaModel:
    """Open a released model; arguments and errors as `read_released`."""
    places = {"llm": llm, "encoders": encoders, "encoder_folder": encoder_folder}
    released = read_released(kind, folder, original_masks=original_masks, **places)
    model = DestaModel(released.config)
    model.load_state_dict(released.tensors)
    return model.eval()
