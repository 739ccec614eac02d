"""Public names for trained models on disk, at the path that documents and scripts use."""

from nemo_desta.core.folder import (
    is_trained_name,
    load_folder,
    load_projector,
    open_model,
    save_folder,
    write_folder,
)
from nemo_desta.models.released import import_released
from nemo_desta.models.step_count import share_step_count
from nemo_desta.sharing.released import read_released, write_released

__all__ = [
    "import_released",
    "is_trained_name",
    "load_folder",
    "load_projector",
    "open_model",
    "read_released",
    "save_folder",
    "share_step_count",
    "write_folder",
    "write_released",
]
