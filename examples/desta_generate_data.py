"""Make training rows from a labelled corpus: `python examples/desta_generate_data.py data_root=... llm=... ...`.

All settings are in conf/recipes/self_generate.yaml (in a folder of its own: the training configs' group llm/ would
hide the setting `llm`). A run that was killed goes on where it was when the same command is given again.
"""

import sys

from nemo.core.config import hydra_runner
from omegaconf import DictConfig

from nemo_desta.config import ConfigError
from nemo_desta.recipes.corpus import ManifestError
from nemo_desta.recipes.run import run_self_generate


@hydra_runner(config_path="../conf/recipes", config_name="self_generate")
def main(cfg: DictConfig) -> None:
    try:
        print(run_self_generate(cfg))
    except (ConfigError, ManifestError, FileNotFoundError) as error:  # the user's to mend: no stack of ours
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
