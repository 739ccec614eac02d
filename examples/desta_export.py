"""Export a trained model as one folder to share: ``python examples/desta_export.py model=runs/x output=my_model``.

``import=desta25 source=<folder> output=<folder>`` imports released weights instead. Settings are in
conf/use/export.yaml (``--help`` lists them); docs/export.md describes the folder.
"""

import sys
import warnings

from omegaconf import DictConfig

from nemo_desta.serving.chat_command import as_overrides
from nemo_desta.serving.silence_imports import log_to_stderr, silence_imports

with silence_imports():
    from nemo.core.config import hydra_runner

    from nemo_desta.sharing.export_command import run_export


@hydra_runner(config_path="../conf/use", config_name="export")
def main(cfg: DictConfig) -> None:
    log_to_stderr()
    try:
        print(run_export(cfg))
    except (ValueError, OSError, ImportError) as error:  # user errors: the message without a stack trace
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # Hydra warns about its own next version; what this package logs is shown
    sys.argv[1:] = as_overrides(sys.argv[1:])
    main()
