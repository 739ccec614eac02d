"""Builds the parts of a recipe from its config: corpora, prompts, engines, gates, stages."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from datetime import datetime
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from nemo_desta.config import LLMConfig, nearest
from nemo_desta.core.build import build_tokenizer
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.thinking import think_format
from nemo_desta.core.trust import UntrustedConfig
from nemo_desta.data.rows import read_rows
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.ask import Answerer, request_messages
from nemo_desta.recipes.corpora import Corpus, check_audio, load_corpus, with_duration
from nemo_desta.recipes.describe import NOT_AUDIBLE, describe
from nemo_desta.recipes.engines import OUR_ENGINES, Engine, SamplingConfig, build_engine, engine_identity
from nemo_desta.recipes.gates import Decontamination, Duplicates, RowGates, value_sets
from nemo_desta.recipes.gates.leak import LeakJudge
from nemo_desta.recipes.hashes import hash64
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import Language, Languages
from nemo_desta.recipes.measure import add_measured
from nemo_desta.recipes.pipeline import RecipeFolder, Stage
from nemo_desta.recipes.pipeline.finish import Check
from nemo_desta.recipes.prompts import Prompt, PromptPool, prompt_set
from nemo_desta.recipes.prompts.compose import SETS, base_prompts
from nemo_desta.recipes.prompts.draw import fits
from nemo_desta.recipes.prompts.propose import PromptProposer
from nemo_desta.recipes.rephrase import Rephraser
from nemo_desta.recipes.rephrase_text import RephraseInstructions
from nemo_desta.recipes.report.sources import find_rows
from nemo_desta.recipes.self_generate import ClipRows, SelfGenerate, SelfRephrase
from nemo_desta.recipes.settings import RecipeConfig, RequestConfig
from nemo_desta.recipes.spoken import SPOKEN, misheard, spoken_prompts
from nemo_desta.sources import why_missing

#: Examples for proposals are drawn from this many clips at the start of the corpora.
EXAMPLES_FROM = 1000
#: The setting that leaves out a system prompt of the chat template.
SWITCH = 'request.system=""'


def build_input(config: RecipeConfig) -> tuple[list[Corpus], dict[str, Path]]:
    """The corpora and each one's root. Raises ``FileNotFoundError`` for a root, manifest or list of rows that does not
    exist, ``ConfigError`` for a corpus without root."""
    names = [config.corpus] if isinstance(config.corpus, str) else list(config.corpus or ())
    how = {"splits": config.splits, "overrides": config.card or None, "validation": config.validation}
    corpora = [load_corpus(name, _root(config.data_root, name), **how) for name in names]
    roots = {corpus.name: Path(corpus.data_root) for corpus in corpora}
    if twice := Counter(corpus.name for corpus in corpora) - Counter(roots.keys()):
        raise ConfigError(
            f"corpora with the same name make rows that cannot be told apart: {', '.join(sorted(twice))}"
        )
    return corpora, roots


def build_prompts(config: RecipeConfig) -> PromptPool | None:
    """The pool to draw from, in the run's language; None when an LLM proposes prompts, or clips or rows have them."""
    if config.prompts in ("proposed", SPOKEN) or (config.rows is not None and config.language != "en"):
        return None
    return prompt_set(config.prompts, seed=config.seed, language=Languages(config.language).default)


def check_llm(config: RecipeConfig) -> str:
    """Load the LLM's tokenizer, as one of our engines will; no weights. Returns a sentence about a system prompt that
    the chat template will add to the requests, empty if it adds none.

    Raises:
        ConfigError: no usable tokenizer there, or one without a chat template; an unknown engine or knob.
    """
    engine = engine_identity(config.engine, config.llm)["name"]
    if engine not in OUR_ENGINES:
        return ""  # it knows itself what its LLM's name means
    key, source = "llm", config.llm
    if engine == "openai":
        if config.tokenizer or config.engine.get("tokenizer"):
            key, source = "tokenizer", config.tokenizer or config.engine["tokenizer"]
        elif config.engine.get("api", "completions") == "chat":
            return ""  # the server renders prompts
    if reason := why_missing(source):
        raise ConfigError(f"{key}: {reason}")
    try:
        tokenizer = build_tokenizer(LLMConfig(path=source))
    except UntrustedConfig:
        raise
    except ConfigError as error:
        raise ConfigError(f"{key}: {str(error).partition('; if they live')[0]}") from error
    prompts = PromptBuilder(tokenizer, chat_template_kwargs=config.chat_template_kwargs)
    return prompts.about_default_system(SWITCH) if config.request.system is None else ""


def check_requires(pool: PromptPool, held: Collection[tuple[str, frozenset[str]]]) -> int:
    """Compare what prompts require with what the clips hold; returns the number of prompts that fit no clip.

    ``held``: domain and names (`held_names`) of the clips.

    Raises:
        ConfigError: a prompt requires a name that neither a clip nor one of our own prompts has, or none fits.
    """
    of_clips = frozenset(chain.from_iterable(names for _, names in held))
    known = of_clips.union(*(prompt.requires for prompt in base_prompts()))
    for prompt in pool:
        for name in prompt.requires:
            if name not in known:
                raise ConfigError(
                    f"prompt '{prompt.prompt_id}' requires '{name}', which no clip has.{nearest(name, of_clips)}"
                )
    unfit = sum(not any(fits(prompt, domain, names) for domain, names in held) for prompt in pool)
    if held and unfit == len(pool):
        found = ", ".join(sorted(of_clips)) or "none"
        raise ConfigError(f"none of {unfit} prompts fits a clip; the clips have these names: {found}")
    return unfit


def fingerprint(pool: PromptPool | None) -> str | None:
    """A short hash of a pool's contents: with a changed prompt file the recipe is another one."""
    if pool is None:
        return None
    prompts = []
    for prompt in pool:
        *fields, weight, _ = astuple(prompt)  # what a probe found changes no row
        prompts.append(fields if weight == 1 else [*fields, weight])
    return _short_hash(json.dumps([*prompts, pool.values], ensure_ascii=False, default=list))


def template_fingerprint(engine: Engine) -> str | None:
    """A short hash of the engine's chat template; None when a server renders the prompts."""
    return None if engine.prompts is None else _short_hash(str(engine.prompts.tokenizer.chat_template))


def dtype_of(engine: Engine) -> str | None:
    """The number format that the LLM computes in; None if the engine does not say (a server)."""
    return getattr(engine, "dtype", None)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def clips(
    corpora: Sequence[Corpus], read: Callable[[Corpus], Iterator[Mapping[str, Any]]] | None = None
) -> Iterator[Mapping[str, Any]]:
    """All clips of all corpora, each with its corpus' name. An id that two corpora share is an error."""
    seen: set[int] = set()
    for corpus in corpora:
        for clip in (read or iter)(corpus):
            if len(corpora) > 1:
                if (short := hash64(clip["id"])) in seen:
                    raise ConfigError(
                        f"clip id {clip['id']!r} of {corpus.name} is in another corpus, too; run them separately"
                    )
                seen.add(short)
            yield {**clip, "corpus": corpus.name, "corpus_version": corpus.version}


def build_engines(config: RecipeConfig) -> tuple[Engine, Engine]:
    """The generating LLM and the judging LLM (often the same engine), loaded or checked at their server."""
    writing = build_engine(
        config.engine, config.llm, chat_template_kwargs=config.chat_template_kwargs, tokenizer=config.tokenizer
    )
    if config.judge.llm is None and config.judge.engine is None:
        return writing, writing
    return writing, build_engine(config.judge.engine or config.engine, config.judge.llm or config.llm)


def freeze_dates(folder: RecipeFolder, engines: Collection[Engine]) -> None:
    """Make chat templates that print the date print the date on which the recipe began."""
    clocks = [engine.prompts for engine in engines if engine.prompts is not None and engine.prompts.reads_clock]
    if clocks:
        began = datetime.fromisoformat(folder.settle("template_date", datetime.now().isoformat()))
        for prompts in clocks:
            prompts.freeze_date(began)


def build_stage(
    config: RecipeConfig,
    corpora: Sequence[Corpus],
    roots: Mapping[str, Path],
    pool: PromptPool | None,
    engines: tuple[Engine, Engine],
) -> Stage:
    """What makes the rows."""
    writing, judging = engines
    sampling = {name: value for name, value in asdict(config.request.sampling).items() if value is not None}
    reads_values = config.gates.facts is not None or (config.gates.grounded is not None and corpora)
    values = value_sets(clip for corpus in corpora for clip in corpus) if reads_values else None
    prompts = writing.prompts
    count_tokens = None if prompts is None else lambda text: len(prompts.tokenize(text))
    gates = RowGates(config.gates, values=values, languages=Languages(config.language), count_tokens=count_tokens)
    shared: dict[str, Any] = {
        "gate": gates.check,
        "absent_gates": gates.absent_for,
        "judge": LeakJudge(judging) if config.judge.enabled else None,
        "max_attempts": config.max_attempts,
        "regenerable": gates.regenerable,
        "provenance": {
            "llm": writing.name,
            "llm_revision": writing.revision,
            **({"llm_dtype": dtype} if (dtype := dtype_of(writing)) else {}),
            "sampling": sampling,
        },
    }
    rephraser, knobs = None, config.rephrase
    if knobs.enabled:
        rephraser = Rephraser(
            writing,
            max_thinking_tokens=knobs.max_thinking_tokens,
            max_new_tokens=knobs.max_new_tokens,
            sampling=knobs.sampling,
            instructions=RephraseInstructions.from_config(knobs.instructions or {}),
        )
    if config.rows is not None:
        return SelfRephrase(rephraser=rephraser, seed=config.seed, **shared)
    return SelfGenerate(
        rows=build_clip_rows(config, corpora, roots, pool),
        answerer=build_answerer(config.request, writing),
        system=config.request.system if config.request.keep_system else None,
        propose=build_proposer(config, corpora, roots, writing, judging) if config.prompts == "proposed" else None,
        rephraser=rephraser,
        audio_locator_tag=config.audio_locator_tag,
        **shared,
    )


def build_answerer(config: RequestConfig, engine: Engine) -> Answerer:
    """What queries the LLM. Logs a system prompt that the chat template adds.

    Raises:
        ConfigError: ``system=""`` for a template that fills an empty system message.
    """
    think, request, prompts = None, dict(vars(config)), engine.prompts
    del request["keep_system"]
    if prompts is None:
        del request["max_new_tokens_by_kind"]  # the server's LLM may think
    else:
        if config.system is None:
            prompts.tell_default_system(SWITCH)
        elif config.system == "" and prompts.keeps_default_system:
            raise ConfigError(
                'request.system="" cannot leave out the system prompt of this chat template, which adds '
                f"{prompts.default_system[:80]!r} to an empty one; give a system text, or null"
            )
        asked = request_messages("sound", "question", template=config.template, system=config.system)
        think = think_format(prompts, messages=asked)
    return Answerer(engine, **request, think=think)


def build_clip_rows(
    config: RecipeConfig, corpora: Sequence[Corpus], roots: Mapping[str, Path], pool: PromptPool | None
) -> ClipRows:
    """The part of the stage that needs no LLM: from clips to wanted rows."""
    excluded, decode = not_audible(config, corpora), config.audio.check == "decode"
    languages = Languages(config.language)

    @lru_cache(maxsize=64)
    def pool_in(language: Language) -> PromptPool | None:
        """None: our prompts are not written in it."""
        if language is languages.default:
            return pool
        if config.prompts == "plain" or (language.prompts is None and config.prompts in SETS):
            return None
        return prompt_set(config.prompts, seed=config.seed, language=language)

    def draw(clip: Mapping[str, Any], count: int) -> Sequence[Prompt]:
        own = pool_in(languages.of_clip(clip))
        return [] if own is None else own.draw(clip, count, seed=config.seed, exclude=excluded)

    def check(clip: Mapping[str, Any]) -> tuple[Rejection | None, float | None]:
        return check_audio(clip, roots[clip["corpus"]], decode=decode)

    spoken = config.prompts == SPOKEN
    known = Decontamination(config.decontaminate).check if config.decontaminate else None

    def check_question(clip: Mapping[str, Any]) -> Rejection | None:
        return misheard(clip, config.max_wer) or (known(clip) if known else None)

    return ClipRows(
        draw=spoken_prompts if spoken else pool and draw,
        rows_per_clip=config.prompts_per_clip,
        check_clip=check_question if spoken else known,
        check_audio=None if config.audio.check == "off" else check,
        dialect=config.describe.dialect,
        not_audible=excluded,
        seed=config.seed,
        languages=languages,
        spoken=spoken,
        max_secs=config.audio.max_secs,
    )


def cross_checks(config: RecipeConfig) -> list[Check]:
    """The checks across rows, run in the plan's order."""
    return [Duplicates(config.gates.duplicates).check]


def units(config: RecipeConfig, corpora: Sequence[Corpus], roots: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
    """The input of the run, lazily: clips, or rows of an earlier self-generation."""
    if config.rows is not None:
        yield from read_rows(find_rows(config.rows).rows)
        return

    def measured(corpus: Corpus) -> Iterator[Mapping[str, Any]]:
        cache = Path(config.output) / "measured"
        return add_measured(corpus, roots[corpus.name], config.describe.measure, cache, corpus=corpus.name)

    yield from clips(corpora, measured if config.describe.measure else None)


def build_proposer(
    config: RecipeConfig, corpora: Sequence[Corpus], roots: Mapping[str, Path], engine: Engine, judging: Engine
) -> PromptProposer:
    """Generates prompts for one clip at a time; descriptions of other clips are its examples."""
    knobs, hidden = config.proposals, not_audible(config, corpora)
    first = list(islice(clips(corpora), EXAMPLES_FROM))
    drawn = random.Random(f"{config.seed}/examples").sample(first, min(len(first), 10 * knobs.num_examples))
    usable = filter(None, (with_duration(clip, roots[clip["corpus"]]) for clip in drawn))
    return PromptProposer(
        engine,
        judge_engine=judging if knobs.judge else None,
        num_candidates=knobs.num_candidates,
        num_examples=knobs.num_examples,
        examples=[describe(clip, config.describe.dialect, exclude=hidden) for clip in usable],
        sampling=SamplingConfig(knobs.max_new_tokens, None),
    )


def not_audible(config: RecipeConfig, corpora: Sequence[Corpus]) -> Collection[str]:
    """Attributes that no description may hold."""
    return frozenset(chain(NOT_AUDIBLE, config.describe.not_audible, *(corpus.not_audible for corpus in corpora)))


def _root(data_root: Any, corpus: str) -> str:
    if isinstance(data_root, str):
        return data_root
    name = Path(corpus).stem
    for key in (corpus, name):
        if key in data_root:
            return data_root[key]
    raise ConfigError(f"data_root has no folder for corpus {corpus!r}; it has {', '.join(sorted(data_root))}")
