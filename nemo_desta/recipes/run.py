"""A generating recipe from its config to its rows: claim the folder, plan, make rows, finish, report."""

import gc
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.build import (
    build_clip_rows,
    build_engines,
    build_input,
    build_prompts,
    build_stage,
    check_llm,
    check_requires,
    cross_checks,
    dtype_of,
    fingerprint,
    freeze_dates,
    not_audible,
    template_fingerprint,
    units,
)
from nemo_desta.recipes.corpora import Corpus
from nemo_desta.recipes.count_clips import count_clips
from nemo_desta.recipes.items import Wanted
from nemo_desta.recipes.pipeline import RecipeFolder, Summary, finish, run_shards, write_plan
from nemo_desta.recipes.pipeline.finish import read_summary
from nemo_desta.recipes.prompts import PromptPool
from nemo_desta.recipes.prompts.draw import held_names
from nemo_desta.recipes.settings import RecipeConfig, identity, parse_recipe

logger = logging.getLogger(__name__)


def run_recipe(cfg: DictConfig | Mapping[str, Any]) -> "Summary | Count | str":
    """Run the recipe that ``cfg`` describes (conf/recipes/self_generate.yaml, self_rephrase.yaml).

    A killed run resumes when it is called again with the same settings. For a finished run only the summary is read.

    Raises:
        ConfigError: unknown, missing or contradicting settings. FileNotFoundError: a missing input. RecipeMismatch:
        the output folder belongs to another recipe. CorpusError: an invalid row of the corpus. EngineError: the LLM
        cannot be queried; rows written so far are kept, and the next call resumes.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    config = parse_recipe(plain)
    corpora, roots = build_input(config)
    if config.count:
        return count_clips(corpora, roots, audio=config.audio.check)
    pool = build_prompts(config)
    if config.check:
        return count(config, corpora, roots, pool)
    folder = RecipeFolder(config.output)
    cards = {corpus.name: corpus.version for corpus in corpora}
    folder.claim({**identity(config), "prompts_hash": fingerprint(pool), "cards": cards})
    if folder.finished:
        logger.info("%s is finished: nothing to do", folder.path)
        return read_summary(folder)
    if probed := {prompt.prompt_id: prompt.probed for prompt in pool or () if prompt.probed}:
        folder.settle("probed", probed)
    total = write_plan(folder, units(config, corpora, roots), shard_size=config.shard_size, progress=config.progress)
    for sentence in (sentence for corpus in corpora for sentence in corpus.said_of_splits()):
        print(sentence)
    unfinished = set(folder.unfinished())
    numbers = [number for number in my_shards(config.shard, total) if number in unfinished]
    if numbers and config.runner.get("name") == "ray":
        from nemo_desta.recipes.cluster import run_on_ray

        run_on_ray(plain, folder, numbers, **{k: v for k, v in config.runner.items() if k != "name"})
    elif numbers:
        make_rows(config, corpora, roots, pool, folder, numbers)
    about = {"llm": config.llm, "engine": config.engine.get("name"), "corpora": cards}
    summary = finish(
        folder, cross_checks(config), rows_per_file=config.rows_per_file, about=about, progress=config.progress
    )
    if config.report and not summary.missing_shards:
        from nemo_desta.recipes.report import write_report

        roots_of_rows = {name: str(root) for name, root in roots.items()} or config.data_root or {}
        print(f"report: {write_report(folder.path, folder.path, audio_root=roots_of_rows, progress=config.progress)}")
    return summary


def make_rows(
    config: RecipeConfig,
    corpora: Sequence[Corpus],
    roots: Mapping[str, Path],
    pool: PromptPool | None,
    folder: RecipeFolder,
    numbers: Sequence[int],
) -> list[int]:
    """Load the LLM and make the rows of shards ``numbers`` in this process; returns the shards that it finished."""
    engines = build_engines(config)
    folder.remember("llm_revision", engines[0].revision)
    folder.remember("llm_dtype", dtype_of(engines[0]))
    folder.remember("chat_template", template_fingerprint(engines[0]))
    freeze_dates(folder, engines)
    if config.request.system is None and (prompts := engines[0].prompts) is not None and prompts.default_system:
        folder.settle("default_system", prompts.default_system)
    stage = build_stage(config, corpora, roots, pool, engines)
    gc.freeze()  # scanning the loaded objects in each collection would cost a quarter of a row's time
    concurrency = engines[0].concurrency
    return run_shards(folder, stage, numbers, concurrency=concurrency, engines=engines, progress=config.progress)


def my_shards(share: str | None, total: int) -> list[int]:
    """The shards of a job ``i/n`` of an array, counted from 0 (Slurm: ``$SLURM_ARRAY_TASK_ID/8``); all when None.
    Raises ``ConfigError`` for another form, or an ``i`` that is not below ``n``."""
    if share is None:
        return list(range(total))
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", str(share))
    if not found or not int(found[1]) < int(found[2]):
        raise ConfigError(f"shard must be i/n with i from 0 to n-1, such as 0/8, found {share!r}")
    return list(range(int(found[1]), total, int(found[2])))


@dataclass
class Count:
    """What a recipe would do: ``to_make`` rows, the reasons why others cannot be made, and what happens to splits.

    ``unfit_prompts``: prompts that fit no clip, of all. ``about_system``: a system prompt that the chat template adds.
    """

    units: int = 0
    to_make: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    splits: list[str] = field(default_factory=list)
    unfit_prompts: tuple[int, int] = (0, 0)
    about_system: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is a row to make."""
        return self.to_make > 0

    def __str__(self) -> str:
        lines = [
            f"clips: {self.units}; rows to make: {self.to_make}; rows that cannot be made: {self.unusable.total()}"
        ]
        for reason, count in self.unusable.most_common():
            lines.append(f"  {reason}: {count}, such as {'; '.join(self.examples[reason])}")
        if self.unfit_prompts[0]:
            lines.append("prompts that fit no clip: {} of {}".format(*self.unfit_prompts))
        return "\n".join([*lines, *self.splits, *filter(None, [self.about_system])])


def count(
    config: RecipeConfig, corpora: Sequence[Corpus], roots: Mapping[str, Path], pool: PromptPool | None
) -> Count:
    """Run every check that needs no LLM but its tokenizer; nothing is written.

    Raises:
        ConfigError: no usable tokenizer (`check_llm`), or prompts that no clip fits (`check_requires`).
    """
    result, held, hidden = Count(about_system=check_llm(config)), set(), not_audible(config, corpora)
    clip_rows = None if config.rows is not None else build_clip_rows(config, corpora, roots, pool)
    for unit in units(config, corpora, roots):
        result.units += 1
        if pool is not None and config.rows is None:
            held.add((unit["domain"], frozenset(held_names(unit, hidden))))
        for wanted in clip_rows(unit) if clip_rows else [Wanted(unit["id"], unit)]:
            if wanted.verdict is None:
                result.to_make += 1
                continue
            reason, detail = wanted.verdict
            result.unusable[reason] += 1
            if len(examples := result.examples.setdefault(reason, [])) < 3:
                examples.append(f"{wanted.id} ({detail})")
    result.splits = [sentence for corpus in corpora for sentence in corpus.said_of_splits()]
    if held:
        result.unfit_prompts = (check_requires(pool, held), len(pool))
    return result
