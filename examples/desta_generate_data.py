"""Make training rows from a labelled corpus: `python examples/desta_generate_data.py corpus=... llm=... output=...`.

Configs are in conf/recipes/: --config-name self_generate (default), self_rephrase, report, check. They have their own
folder because the training configs' group llm/ would hide the setting `llm`. To resume a killed run, give the same
command again.
"""

import sys

from nemo.core.config import hydra_runner
from omegaconf import DictConfig

from nemo_desta.errors import ConfigError, RowError
from nemo_desta.recipes.commands import failed, run_command
from nemo_desta.recipes.corpora import CorpusError
from nemo_desta.recipes.engines import EngineError
from nemo_desta.recipes.pipeline import RecipeMismatch

#: User errors: shown without a stack trace, because their messages say what to do.
USER_ERRORS = (ConfigError, RecipeMismatch, CorpusError, RowError, EngineError, FileNotFoundError, ImportError)


@hydra_runner(config_path="../conf/recipes", config_name="self_generate")
def main(cfg: DictConfig) -> None:
    try:
        result = run_command(cfg)
    except USER_ERRORS as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(result)
    if failed(result):
        sys.exit(1)


if __name__ == "__main__":
    main()
