"""Public names around trained models on disk, under the path that documents and scripts know."""

from nemo_desta.models.model_folder import (
    is_trained_name,
    load_folder,
    load_projector,
    open_model,
    save_folder,
    share_step_count,
    write_folder,
)
from nemo_desta.models.sharing.released import import_released, read_released, write_released

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
