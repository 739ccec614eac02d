"""The command ``probe``: which prompts an LLM answers rightly about descriptions that are true.

It queries the LLM with each prompt about a few clips, scores what a rule can score (gates, facts, the attributes that
the prompt requires, the format), and writes the prompts that work into a file for ``prompts=``, with weights by score.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.config import MISSING, parse
from nemo_desta.errors import ConfigError
from nemo_desta.progress import Progress
from nemo_desta.recipes.ask import Answerer, first_problem
from nemo_desta.recipes.build import build_answerer, build_engines, build_input, build_prompts, clips, not_audible
from nemo_desta.recipes.corpora import with_duration
from nemo_desta.recipes.describe import describe
from nemo_desta.recipes.engines.base import Generation, tokens_of
from nemo_desta.recipes.gates import GatesConfig, RowGates, value_sets
from nemo_desta.recipes.gates.facts import FactsConfig
from nemo_desta.recipes.gates.text import answer_of
from nemo_desta.recipes.gates.wordings import grounded_attributes
from nemo_desta.recipes.prompts import Prompt, obeys
from nemo_desta.recipes.prompts.draw import fits, held_names
from nemo_desta.recipes.prompts.fill import fill
from nemo_desta.recipes.run_async import run_async
from nemo_desta.recipes.self_generate import row_seed
from nemo_desta.recipes.settings import RequestConfig, parse_recipe

#: Clips that are read of the corpora, from their start.
_MOST_CLIPS = 5000
#: Settings that a recipe does not have.
_OWN = ("answers_per_prompt", "max_prompts", "min_right")


@dataclass(frozen=True)
class ProbeConfig:
    """The settings of conf/recipes/probe.yaml, which documents them."""

    corpus: str | list[str] = MISSING
    data_root: str | dict[str, str] = MISSING
    llm: str = MISSING
    output: str = MISSING
    prompts: str | list[dict] = "plain"
    answers_per_prompt: int = 16
    max_prompts: int = 200
    min_right: float = 0.7
    splits: list[str] | None = field(default_factory=lambda: ["train"])
    card: dict[str, Any] | None = None
    tokenizer: str | None = None
    engine: dict[str, Any] = field(default_factory=lambda: {"name": "hf"})
    chat_template_kwargs: dict[str, Any] | None = None
    request: RequestConfig = field(default_factory=RequestConfig)
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Score:
    """``right`` of ``asked`` answers; ``low`` and ``high``: Wilson's 95 % interval of the share."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked

    @property
    def weight(self) -> float:
        """How often the prompt is drawn: the expected share of right answers. Few answers leave it near one half."""
        return (self.right + 1) / (self.asked + 2)

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.96, self.asked, self.share
        middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    def __str__(self) -> str:
        return "{:.0%} [{:.0%}, {:.0%}] of {}".format(self.share, *self.interval, self.asked)


@dataclass
class Probed:
    """The result: scores per prompt, best first, and per group of prompts (kind and required names)."""

    path: Path
    prompts: list[tuple[Prompt, Score]]
    kept: int = 0

    def chosen(self, min_right: float) -> list[tuple[Prompt, Score]]:
        """The prompts that reach ``min_right``. One whose group does not (by its interval) may be lucky: it must also
        be better than the group for certain, its interval above the group's."""
        groups, found = self.groups(), []
        for prompt, score in self.prompts:
            best = groups[_group_of(prompt)].interval[1]
            if score.share >= min_right and (best >= min_right or score.interval[0] > best):
                found.append((prompt, score))
        return found

    def groups(self) -> dict[str, Score]:
        right, asked = Counter[str](), Counter[str]()
        for prompt, score in self.prompts:
            name = _group_of(prompt)
            right[name] += score.right
            asked[name] += score.asked
        found = {name: Score(right[name], number) for name, number in asked.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1].share))

    def __str__(self) -> str:
        lines = [f"{name}: {score}" for name, score in self.groups().items()]
        return "\n".join([*lines, f"{self.path}: {self.kept} of {len(self.prompts)} prompts"])


def run_probe(plain: Mapping[str, Any]) -> Probed:
    """Query the LLM, and write ``output``. Raises ``ConfigError`` for unknown or missing settings, and if no prompt
    reaches ``min_right``."""
    own = parse(ProbeConfig, plain, where="probe")
    if Path(own.output).suffix not in (".yaml", ".yml"):
        raise ConfigError(f"output must be a .yaml file for the prompts, found {own.output!r}")
    config = parse_recipe({key: value for key, value in asdict(own).items() if key not in _OWN})
    corpora, roots = build_input(config)
    pool, hidden = build_prompts(config), not_audible(config, corpora)
    if pool is None:
        raise ConfigError("probe needs a set of prompts (plain, pool, composed, a file), not proposed ones")
    known = list(islice(clips(corpora), _MOST_CLIPS))
    rows = _rows(pool, known, roots, own, hidden)
    if not rows:
        raise ConfigError(
            f"no prompt fits a clip: of {len(known)} clips of {', '.join(roots)}, none has usable audio and the "
            "attributes that a prompt requires"
        )
    engine = build_engines(config)[0]
    answers = _answers(build_answerer(own.request, engine), rows, own)
    gates = RowGates(GatesConfig(facts=FactsConfig()), values=value_sets(known))
    right, asked = Counter[str](), Counter[str]()
    for row, answer in zip(rows, answers, strict=True):
        asked[row["prompt_id"]] += 1
        right[row["prompt_id"]] += _is_right(row, answer, gates)
    scored = [(prompt, Score(right[prompt.prompt_id], n)) for prompt in pool if (n := asked[prompt.prompt_id])]
    scored.sort(key=lambda pair: (-pair[1].share, pair[0].prompt_id))
    probed = Probed(Path(own.output), scored)
    kept = probed.chosen(own.min_right)
    probed.kept = len(kept)
    if not kept:
        raise ConfigError(f"no prompt reaches min_right={own.min_right}; the groups of prompts:\n{probed}")
    _write(probed, kept, engine.name)
    return probed


def _rows(
    pool: Sequence[Prompt],
    known: Sequence[Mapping[str, Any]],
    roots: Mapping[str, Path],
    own: ProbeConfig,
    hidden: Collection[str],
) -> list[dict[str, Any]]:
    """Rows without responses: each prompt about clips that it fits and whose audio can be used."""
    held = [held_names(clip, hidden) for clip in known]
    usable: dict[str, Mapping[str, Any] | None] = {}

    def whole(clip: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if clip["id"] not in usable:
            usable[clip["id"]] = with_duration(clip, roots[clip["corpus"]])
        return usable[clip["id"]]

    chosen = list(pool)
    random.Random(own.seed).shuffle(chosen)
    rows = []
    for prompt in chosen[: own.max_prompts]:
        fitting = [clip for clip, names in zip(known, held, strict=True) if fits(prompt, clip["domain"], names)]
        rng = random.Random(f"{own.seed}:{prompt.prompt_id}")
        drawn = filter(None, map(whole, rng.sample(fitting, len(fitting))))
        for clip in islice(drawn, own.answers_per_prompt):
            if (filled := fill(prompt, clip, seed=own.seed)) is not None:
                audio = {"audio": clip["audio"], "text": clip.get("transcript")}
                rows.append(
                    {
                        "id": f"{clip['id']}-{prompt.prompt_id}",
                        "seed_description": describe(clip, exclude=hidden),
                        "prompt": filled.prompt,
                        "messages": [{"role": "user", "content": filled.prompt, "audios": [audio]}],
                        "prompt_id": prompt.prompt_id,
                        "prompt_kind": prompt.kind,
                        "prompt_requires": list(prompt.requires),
                        "constraint": prompt.constraint,
                        "filled": filled,
                        "clip": clip,
                    }
                )
    return rows


def _answers(answerer: Answerer, rows: Sequence[Mapping[str, Any]], own: ProbeConfig) -> list[Generation]:
    """The answers in the order of the rows."""
    engine = answerer.engine
    bar = Progress("answers", len(rows), unit="answers", tokens=lambda: tokens_of([engine]) or 0, shown=own.progress)

    async def one(row: Mapping[str, Any]) -> Generation:
        answer = await answerer(row["seed_description"], row["filled"], seed=row_seed(own.seed, row["id"]))
        bar.update()
        return answer

    async def together() -> list[Generation]:
        try:
            async with bar.ticking():
                return list(await asyncio.gather(*map(one, rows)))
        finally:
            await engine.close()

    with bar:
        return run_async(together())


def _is_right(row: Mapping[str, Any], answer: Generation, gates: RowGates) -> bool:
    """Whether the answer ends, passes the gates, names what the prompt requires, and has the format."""
    if first_problem(answer) is not None or answer.truncated:
        return False
    made = {**row, "response": answer.text, "truncated": answer.truncated}
    follows = row["constraint"] is None or obeys(row["constraint"], answer_of(answer.text)) is not False
    # A yes or no, or a letter, does not name the value.
    named = row["prompt_kind"] in ("yes_no", "multiple_choice") or all(grounded_attributes(made).values())
    return follows and named and gates.check(made, row["clip"]) is None


def _write(probed: Probed, kept: Sequence[tuple[Prompt, Score]], llm: str) -> None:
    said = [f"Prompts that {llm} answers rightly: share [95 % interval] of answers.", *str(probed).splitlines()[:-1]]
    entries = []
    for prompt, score in kept:
        entry = {key: value for key, value in asdict(prompt).items() if value}
        entry |= {"weight": round(prompt.weight * score.weight, 3), "probed": (score.right, score.asked)}
        entry |= {key: list(value) for key, value in entry.items() if isinstance(value, tuple)}
        if prompt.constraint is not None:
            entry["constraint"] = {"name": prompt.constraint.name, "args": list(prompt.constraint.args)}
        entries.append(entry)
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=110)
    lines = [*(f"# {line}" for line in said), "#"]
    lines += [f"# {score}: {' '.join(prompt.prompt.split())}" for prompt, score in probed.prompts]
    probed.path.parent.mkdir(parents=True, exist_ok=True)
    probed.path.write_text("\n".join([*lines, text]), encoding="utf-8")


def _group_of(prompt: Prompt) -> str:
    """Kind, required names and format."""
    form = [] if prompt.constraint is None else [f"format {prompt.constraint.name}"]
    return ", ".join([prompt.kind or "no kind", *prompt.requires, *form])
