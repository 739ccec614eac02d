"""Serve a trained model over OpenAI's chat API: `python examples/desta_serve.py model=<folder> [port=8000 ...]`.

The config is conf/use/serve.yaml, in its own folder because the training configs' group llm/ would hide the setting
`llm`. The API key is read from the environment variable NEMO_DESTA_API_KEY.
"""

import logging
import sys

from nemo.core.config import hydra_runner
from omegaconf import DictConfig

from nemo_desta.errors import ConfigError


@hydra_runner(config_path="../conf/use", config_name="serve")
def main(cfg: DictConfig) -> None:
    try:
        from nemo_desta.serving.server import run_serve

        run_serve(cfg)
    except (ConfigError, FileNotFoundError, ImportError) as error:  # user errors: the message without a stack trace
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    main()
