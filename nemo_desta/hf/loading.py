"""What `from_pretrained` of the model and of the processor share: the folder, and the arguments of the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.core.folder import FOLDER_FILES, find_model
from nemo_desta.sources import fetch_folder

PROCESSOR_FILE = "processor_config.json"
#: Arguments of transformers' loaders that say how a hub id is downloaded.
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
#: Further ones that its auto classes and pipelines pass, without a meaning here.
IGNORED = ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "code_revision", "use_fast", "proxies")
#: Arguments of the model's loader alone, which pipelines give to the processor's too.
OF_THE_MODEL = ("dtype", "torch_dtype", "attn_implementation", "device_map", "max_memory", "offload_folder") + (
    "quantization_config",
)


def model_folder(source: str | Path, options: Mapping[str, Any]) -> Path:
    """The model folder of a path or hub id. ``options``: what a loader of transformers was called with beyond its own
    arguments.

    Raises:
        TypeError: an argument that does not exist. FileNotFoundError: no such model.
    """
    for name, value in options.items():
        if name not in (*HUB_OPTIONS, *IGNORED, *OF_THE_MODEL) and (name, value) != ("subfolder", ""):
            raise TypeError(f"from_pretrained has no argument '{name}'.{nearest(name, HUB_OPTIONS)}")
    hub = {name: options[name] for name in HUB_OPTIONS if options.get(name)}
    folder = fetch_folder(str(source), FOLDER_FILES, **hub)
    return folder if (folder / PROCESSOR_FILE).is_file() else find_model(folder)
