"""The command ``report``: target perplexity if an LLM is given, then the statistics and the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_desta.config import MISSING, parse
from nemo_desta.recipes.report.compute import MAX_LEAK_CHECKS
from nemo_desta.recipes.report.write import write_report


@dataclass(frozen=True)
class ReportConfig:
    """The settings of conf/recipes/report.yaml, which documents them."""

    rows: str | list[str] = MISSING  # path, pattern, or a list of them
    output: str | None = None
    audio_root: str | dict[str, str] | None = None  # a folder, or one per dataset
    title: str | None = None
    num_samples: int = 20
    num_rejected: int = 8
    seed: int = 0
    prices: dict[str, float] | None = None
    max_leak_checks: int | None = MAX_LEAK_CHECKS
    llm: str | None = None
    others: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    audio_locator_tag: str = "<|AUDIO|>"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 8
    max_rows: int | None = 2000
    progress: bool = True


#: Settings of `target_perplexity`; the others go to `write_report`.
_SCORING = "llm others chat_template_kwargs audio_locator_tag device dtype batch_size max_rows".split()


@dataclass(frozen=True)
class Written:
    """The path of the report, and the target perplexity if it was computed."""

    path: Path
    perplexity: Any | None = None

    def __str__(self) -> str:
        found = f"{self.perplexity}\n" if self.perplexity is not None else ""
        return f"{found}report: {self.path}"


def run_report(plain: Mapping[str, Any]) -> Written:
    """Run `write_report` with a config. Raises ``ConfigError`` for unknown or missing settings, ``FileNotFoundError``
    without rows."""
    settings = dict(vars(parse(ReportConfig, plain, where="report")))
    rows, output = settings.pop("rows"), settings.pop("output")
    scoring = {name: settings.pop(name) for name in _SCORING}
    found = None
    if scoring["llm"] is not None:
        from nemo_desta.recipes.report.perplexity import target_perplexity

        found = target_perplexity(rows, seed=settings["seed"], progress=settings["progress"], **scoring)
    perplexity = None if found is None else found.to_json()
    if output is None:  # the recipe's folder, or the current one
        output = rows if isinstance(rows, str) and Path(rows).is_dir() else Path.cwd()
    return Written(write_report(rows, output, perplexity=perplexity, **settings), found)
