"""``key={}`` on the command line empties a mapping. Hydra merges it, which changes nothing."""

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict


def typed_overrides() -> list[str]:
    """The overrides of the command line; none outside a Hydra command."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def with_empty(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of ``cfg`` in which each ``key={}`` of ``overrides`` is empty but for what later overrides put there."""
    cfg = cfg.copy()
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for number, emptied in enumerate(parsed):
        if emptied.value() != {} or emptied.is_delete():
            continue
        key = emptied.key_or_group
        with open_dict(cfg):
            OmegaConf.update(cfg, key, {}, merge=False)
            for later in parsed[number + 1 :]:
                if later.key_or_group.startswith(f"{key}.") and not later.is_delete():
                    OmegaConf.update(cfg, later.key_or_group, later.value(), force_add=True)
    return cfg
