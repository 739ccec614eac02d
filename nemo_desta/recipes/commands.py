"""What `examples/desta_generate_data.py` runs, by the config's `recipe`: generate, report, check or shar."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError


def run_command(cfg: DictConfig | Mapping[str, Any]) -> Any:
    """Run it; what comes back prints as its result. Whether it is one to fail a script on: see `failed`."""
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    name = plain.pop("recipe", None)
    if name not in COMMANDS:
        raise ConfigError(f"unknown recipe {name!r}.{nearest(str(name), COMMANDS)}")
    return COMMANDS[name](plain)


def failed(result: Any) -> bool:
    """Whether a command has found that something is wrong, such as bad rows."""
    return getattr(result, "ok", True) is False


def _generate(plain: Mapping[str, Any]) -> Any:
    from nemo_desta.recipes.run import run_recipe

    return run_recipe(plain)


def _report(plain: Mapping[str, Any]) -> Any:
    from nemo_desta.recipes.report.command import run_report

    return run_report(plain)


def _check(plain: Mapping[str, Any]) -> Any:
    from nemo_desta.recipes.check_rows import run_check

    return run_check(plain)


def _shar(plain: Mapping[str, Any]) -> Any:
    from nemo_desta.recipes.shar import run_shar

    return run_shar(plain)


COMMANDS = {"generate": _generate, "report": _report, "check": _check, "shar": _shar}
