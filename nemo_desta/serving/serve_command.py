"""The job ``desta serve``."""

from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import check_keys, parse
from nemo_desta.screen import silence_imports
from nemo_desta.serving.settings import Served, ServerSettings


def run_serve(cfg: DictConfig) -> None:
    """Serve as the config says until a signal stops it.

    Raises:
        ConfigError: an unknown or wrong setting. Also the errors of `open_and_serve`.
    """
    given: Any = OmegaConf.to_container(cfg, resolve=True)
    model, limits = ({field.name for field in fields(kind)} for kind in (Served, ServerSettings))
    check_keys(given, model | limits, "serve")
    served = parse(Served, {key: given[key] for key in given if key in model}, "serve")
    settings = parse(ServerSettings, {key: given[key] for key in given if key in limits}, "serve")
    with silence_imports():
        from nemo_desta.serving.server import open_and_serve
    open_and_serve(served, settings)
