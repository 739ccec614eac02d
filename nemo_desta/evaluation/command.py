"""The job ``desta evaluate``."""

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import parse
from nemo_desta.evaluation.settings import EvaluateSettings


def run_evaluate(cfg: DictConfig) -> str:
    """Evaluate as the config says; returns the table and the path of the report.

    Raises:
        ConfigError: a wrong setting. Also the errors of `evaluate`.
    """
    settings = parse(EvaluateSettings, OmegaConf.to_container(cfg, resolve=True), "evaluate")
    from nemo_desta.evaluation.report import render
    from nemo_desta.evaluation.run import evaluate

    return f"{render(evaluate(settings))}\n\n{settings.output}/report.html"
