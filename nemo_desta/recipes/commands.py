"""Dispatch of `desta generate` by the config's `recipe`."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import nearest
from nemo_desta.core.build import hide_loading_bars
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.check_rows import run_check
from nemo_desta.recipes.probe import run_probe
from nemo_desta.recipes.released_rows import run_released
from nemo_desta.recipes.report.command import run_report
from nemo_desta.recipes.run import run_recipe
from nemo_desta.recipes.shar import run_shar

COMMANDS = {
    **{"generate": run_recipe, "probe": run_probe, "report": run_report, "check": run_check, "shar": run_shar},
    "alarm_corpora": run_released,
}


def run_command(cfg: DictConfig | Mapping[str, Any]) -> Any:
    """Run the recipe. Printing what it returns shows the result; ``ok``, if it has that, says whether all is well."""
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    name = plain.pop("recipe", None)
    if str(name) not in COMMANDS:
        raise ConfigError(f"unknown recipe {name!r}.{nearest(str(name), COMMANDS)}")
    hide_loading_bars()
    return COMMANDS[name](plain)
