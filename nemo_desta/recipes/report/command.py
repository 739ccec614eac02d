"""The report as a command: target perplexity if an LLM is given, then the figures and the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_desta.config import MISSING, parse
from nemo_desta.recipes.report.figures import MAX_LEAK_CHECKS
from nemo_desta.recipes.report.write import write_report


@dataclass(frozen=True)
class ReportConfig:
    """The knobs of conf/recipes/report.yaml, which says what each is for."""

    rows: Any = MISSING  # path, pattern, or a list of them
    output: str | None = None
    audio_root: Any = None  # a folder, or one per dataset
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


@dataclass(frozen=True)
class Written:
    """Where the report is, and what the LLM says of the rows."""

    path: Path
    perplexity: Any | None = None

    def __str__(self) -> str:
        found = f"{self.perplexity}\n" if self.perplexity is not None else ""
        return f"{found}report: {self.path}"


def run_report(plain: Mapping[str, Any]) -> Written:
    """`write_report` by its config.

    Raises:
        ConfigError: unknown or missing settings. FileNotFoundError: nothing to read.
    """
    config = parse(ReportConfig, plain, where="report")
    perplexity = None
    if config.llm is not None:
        from nemo_desta.recipes.perplexity import target_perplexity

        perplexity = target_perplexity(
            config.rows,
            config.llm,
            others=config.others,
            device=config.device,
            dtype=config.dtype,
            batch_size=config.batch_size,
            max_rows=config.max_rows,
            seed=config.seed,
            audio_locator_tag=config.audio_locator_tag,
            chat_template_kwargs=config.chat_template_kwargs,
            progress=config.progress,
        )
    path = write_report(
        config.rows,
        config.output or _beside(config.rows),
        audio_root=config.audio_root,
        num_samples=config.num_samples,
        num_rejected=config.num_rejected,
        seed=config.seed,
        prices=config.prices,
        perplexity=None if perplexity is None else perplexity.to_json(),
        max_leak_checks=config.max_leak_checks,
        title=config.title,
        progress=config.progress,
    )
    return Written(path, perplexity)


def _beside(rows: Any) -> Path:
    """The recipe's folder itself, or the current one."""
    return Path(rows) if isinstance(rows, str) and Path(rows).is_dir() else Path.cwd()
