"""Score a model: ``python examples/desta_evaluate.py model=<folder> benchmarks=[mmau] data_root=<dir> output=<dir>``.

Settings are in conf/use/evaluate.yaml (``--help`` lists them). The same command resumes a killed run.
"""

import sys

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import parse
from nemo_desta.serving.silence_imports import log_to_stderr, silence_imports

with silence_imports():
    from nemo.core.config import hydra_runner


@hydra_runner(config_path="../conf/use", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    log_to_stderr()
    from nemo_desta.evaluation.report import render
    from nemo_desta.evaluation.run import evaluate
    from nemo_desta.evaluation.settings import EvaluateSettings

    try:
        settings = parse(EvaluateSettings, OmegaConf.to_container(cfg, resolve=True), "evaluate")
        report = evaluate(settings)
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # user errors: the message without a stack trace
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; finished answers are saved, and the same command resumes after them")
    print(render(report))
    print(f"\n{settings.output}/report.html")


if __name__ == "__main__":
    with silence_imports():  # Hydra warns about its own next version
        main()
