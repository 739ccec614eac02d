"""Train a DeSTA model: ``python examples/speechlm_desta.py --config-name desta25 [key=value ...]``.

Configs live in ``conf/``; ``--config-dir <folder>`` adds your own. ``check=true`` validates and stops. The same
command resumes a killed run.
"""

import logging
import sys

from nemo.core.config import hydra_runner
from omegaconf import DictConfig

from nemo_desta.errors import ConfigError
from nemo_desta.training.fit import fit
from nemo_desta.training.preflight import MissingParts


@hydra_runner(config_path="../conf", config_name="desta25")
def main(cfg: DictConfig) -> None:
    try:
        fit(cfg)
    except (ConfigError, MissingParts) as error:  # user errors: the message without a stack trace
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    main()
