"""The job ``desta train``: a config's own mistakes are found before torch, NeMo and Lightning are imported."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import ModelConfig, check_keys, check_type, parse
from nemo_desta.screen import hush, silence_imports
from nemo_desta.training.sections import SECTIONS, VALUES


def train(cfg: DictConfig) -> None:
    """See `fit`, and `count_data` for ``count=true``. One of several runs (``-m``) writes into its own folder of
    Hydra's ``multirun/``.

    Raises:
        ConfigError: an unknown or wrong setting. Also the errors of `fit`.
    """
    check_keys(cfg, (*SECTIONS, *VALUES), "config")
    check_type(cfg.get("count"), bool | None, "'count'")
    if cfg.get("count"):
        from nemo_desta.training.count_data import count_data

        print(count_data(OmegaConf.to_container(cfg.data, resolve=True)))
        return
    parse(ModelConfig, OmegaConf.to_container(cfg, resolve=True).get("model"))
    own_folder(cfg)
    with silence_imports():
        from nemo_desta.core.build import hide_loading_bars
        from nemo_desta.training.fit import fit
    hide_loading_bars()
    hush("nemo_logger", "lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    fit(cfg)


def own_folder(cfg: DictConfig) -> None:
    """Moves the folder of one of several runs, if it is relative, into that run's folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    sweep = HydraConfig.get().sweep
    cfg.exp_manager.exp_dir = str(Path(sweep.dir) / sweep.subdir / (cfg.exp_manager.exp_dir or ""))
