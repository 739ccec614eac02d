"""Target perplexity: how near the responses of rows are to what the frozen LLM itself would have written.

The mean negative log-likelihood per token of each response under the LLM, given the text that stands for the audio
and the prompt - the variable by which DeSTA2.5-Audio explains why self-generated targets work. Foreign rows (another
LLM's, people's) can be scored beside own ones.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import exp
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tqdm import tqdm

from nemo_desta.core.prompting import Example, PromptBuilder
from nemo_desta.data.rows import JsonlIndex
from nemo_desta.errors import RowError, row_guard
from nemo_desta.recipes.ask import TEMPLATE, request_messages
from nemo_desta.recipes.engines.local import llm_name
from nemo_desta.recipes.report.sources import Paths, find_rows
from nemo_desta.sources import resolve_source

logger = logging.getLogger(__name__)

#: Batches are sorted by length within this many, so that little of a batch is padding.
_BATCHES_SORTED_TOGETHER = 16
#: Logits of one batch: rows x tokens x vocabulary stay below this, however large ``batch_size`` is.
_MAX_LOGITS = 2**29


@dataclass(frozen=True)
class Score:
    """``nll``: nats per token over all tokens; ``perplexity`` its exponential. ``median_row_*``: of the rows' own."""

    rows: int
    tokens: int
    nll: float
    perplexity: float
    median_row_nll: float
    median_row_perplexity: float


@dataclass(frozen=True)
class RowsScore:
    """The score of one set of rows, whole and in parts. ``skipped``: rows that could not be scored, by reason."""

    total: Score
    by_corpus: dict[str, Score]
    by_stage: dict[str, Score]
    by_llm: dict[str, Score]
    skipped: dict[str, int]


@dataclass(frozen=True)
class Perplexity:
    """``own``: the rows in question; ``others``: name -> foreign rows, under the same LLM."""

    llm: str
    own: RowsScore
    others: dict[str, RowsScore]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as reports take it."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"target perplexity under {self.llm}:"]
        for name, one in {"these rows": self.own, **self.others}.items():
            score, left = one.total, "".join(f"; not scored: {n} {reason}" for reason, n in one.skipped.items())
            lines.append(
                f"  {name}: {score.perplexity:.3f} ({score.nll:.4f} nats per token, {score.tokens} tokens in "
                f"{score.rows} rows, median row {score.median_row_perplexity:.3f}){left}"
            )
        return "\n".join(lines)


def target_perplexity(
    rows: Paths,
    llm: str | tuple[Any, Any],
    *,
    others: Mapping[str, Paths] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 8,
    max_rows: int | None = None,
    seed: int = 0,
    audio_locator_tag: str = "<|AUDIO|>",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Perplexity:
    """Score ``rows`` (a recipe's output folder, JSONL files or patterns), and ``others`` beside them, under ``llm``.

    The LLM reads what the recipe of ``rows`` let it read (``recipe.json`` says it; DeSTA2.5-Audio's wording for rows
    without one), also for ``others``. The end-of-turn token is scored with the response unless the row is truncated.
    A rewritten response is scored as any other: given description and prompt, which is what training wants the LLM to
    say.

    Args:
        llm: hub id, folder or ``package:<path>``; or a loaded (model, tokenizer).
        device, dtype: ``auto`` takes the GPU if there is one, bfloat16 on it and float32 on a CPU.
        max_rows: score so many of each set, drawn by ``seed``; None: all.

    Raises:
        FileNotFoundError: no rows. ValueError: nothing could be scored, or ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 row is scored at a time")
    found = {"own": find_rows(rows)} | {name: find_rows(paths) for name, paths in (others or {}).items()}
    sets = {name: source.rows for name, source in found.items()}
    asked = found["own"].recipe.get("request") or {}
    began = found["own"].recipe.get("template_date")
    wording = {name: asked[name] for name in ("template", "system") if asked.get(name)}
    if len(sets) != 1 + len(others or {}):
        raise ValueError("others: the name 'own' is taken by the rows in question; choose another")
    model, tokenizer, name = _load(llm, device, dtype) if isinstance(llm, str) else (*llm, _name(llm[0]))
    date = datetime.fromisoformat(began) if began else None
    builder = PromptBuilder(tokenizer, audio_locator_tag, chat_template_kwargs, date=date)
    scores = {}
    for label, files in sets.items():
        skipped: Counter[str] = Counter()
        wanted = _Wanted(JsonlIndex(files), max_rows, seed)
        bar = tqdm(total=len(wanted), desc=f"perplexity, {label}", unit="row", disable=not progress)
        with bar:
            scored = list(
                _score(model, _examples(wanted, builder, wording, _context(model), skipped, bar), batch_size, bar)
            )
        if not scored:
            raise ValueError(f"{label}: none of {len(wanted)} rows could be scored ({dict(skipped)})")
        scores[label] = _summed(scored, skipped)
    return Perplexity(name, scores.pop("own"), scores)


def text_messages(
    row: Mapping[str, Any],
    audio_locator_tag: str = "<|AUDIO|>",
    *,
    template: str = TEMPLATE,
    system: str | None = None,
) -> list[dict[str, str]]:
    """The row's chat with the seed description in the place of the audio: what the LLM read when it wrote.

    ``template`` and ``system``: the recipe's wording for a row of one user message about one clip. In other rows the
    description stands before the first message about audio; a system text and earlier turns are kept.

    Raises:
        RowError: no description, or no message that it could go into.
    """
    description = row.get("seed_description")
    if not isinstance(description, str) or not description.strip():
        raise RowError("no seed description", f"row '{row['id']}' has no seed_description to stand for its audio")
    messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
    if len(messages) == 1 and isinstance(row.get("prompt"), str):
        return request_messages(description, row["prompt"], template=template, system=system)
    places = [i for i, m in enumerate(row["messages"]) if m.get("audios")]
    places = places or [i for i, m in enumerate(messages) if m["role"] == "user"][-1:]
    if not places:
        raise RowError("no user message", f"row '{row['id']}' has no user message for its description")
    for i in places:
        for tag in (f"{audio_locator_tag}\n", audio_locator_tag):
            messages[i]["content"] = messages[i]["content"].replace(tag, "")
    messages[places[0]]["content"] = f"{description}\n{messages[places[0]]['content']}"
    return messages


class _Wanted:
    """The rows to score, all or a draw, in the order of their files."""

    def __init__(self, index: JsonlIndex, max_rows: int | None, seed: int) -> None:
        self.index = index
        count = len(index)
        self.places: Sequence[int] = range(count)
        if max_rows is not None and max_rows < count:
            self.places = sorted(random.Random(seed).sample(self.places, max_rows))

    def __len__(self) -> int:
        return len(self.places)


class _Todo(NamedTuple):
    example: Example
    corpus: str
    stage: str
    llm: str


class _Scored(NamedTuple):
    nll: float
    tokens: int
    corpus: str
    stage: str
    llm: str


def _examples(
    wanted: _Wanted,
    builder: PromptBuilder,
    wording: Mapping[str, str],
    context: int | None,
    skipped: Counter[str],
    bar: Any,
) -> Iterator[_Todo]:
    for place in wanted.places:
        try:
            with row_guard():
                row = wanted.index.row(place)
                text = {**row, "messages": text_messages(row, builder.audio_locator_tag, **wording)}
                example = builder.example(text)
            if context is not None and len(example.ids) > context:
                raise RowError("longer than the context", f"row '{row['id']}': {len(example.ids)} tokens of {context}")
        except RowError as error:
            skipped[error.reason] += 1
            logger.info("not scored: %s", error)
            bar.update(1)
            continue
        corpus = str(row.get("corpus") or row.get("dataset") or "not said")
        yield _Todo(example, corpus, str(row.get("stage") or "not said"), str(row.get("llm") or "not said"))


def _score(model: Any, todo: Iterator[_Todo], batch_size: int, bar: Any) -> Iterator[_Scored]:
    import torch

    for batch in _batches(todo, batch_size, model.config.get_text_config().vocab_size):
        with torch.inference_mode():
            sums = response_nlls(model, [item.example for item in batch])
        for item, nll in zip(batch, sums, strict=True):
            yield _Scored(nll, len(item.example.ids) - item.example.prompt_len, item.corpus, item.stage, item.llm)
        bar.update(len(batch))


def response_nlls(model: Any, examples: Sequence[Example]) -> list[float]:
    """Summed negative log-likelihood (nats) of each example's target, in one batch.

    Padding is on the right and masked; logits are made from the first target on and summed in float32.
    """
    import torch
    from torch.nn.functional import cross_entropy

    width = max(len(e.ids) for e in examples)
    ids = torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in examples], device=model.device)  # (B, L)
    mask = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in examples], device=model.device)
    first = min(e.prompt_len for e in examples) - 1
    places = torch.arange(first, width - 1, device=model.device)
    output = model(input_ids=ids, attention_mask=mask, logits_to_keep=places, use_cache=False)
    sums = []
    for i, example in enumerate(examples):
        start, end = example.prompt_len, len(example.ids)
        logits = output.logits[i, start - 1 - first : end - 1 - first].float()  # (target, V)
        sums.append(cross_entropy(logits, ids[i, start:end], reduction="sum").item())
    return sums


def _batches(todo: Iterator[_Todo], size: int, vocabulary: int) -> Iterator[list[_Todo]]:
    window: list[_Todo] = []
    for item in todo:
        window.append(item)
        if len(window) == size * _BATCHES_SORTED_TOGETHER:
            yield from _cut(window, size, vocabulary)
            window = []
    yield from _cut(window, size, vocabulary)


def _cut(window: list[_Todo], size: int, vocabulary: int) -> Iterator[list[_Todo]]:
    batch: list[_Todo] = []
    for item in sorted(window, key=lambda one: len(one.example.ids)):
        full = (len(batch) + 1) * len(item.example.ids) * vocabulary > _MAX_LOGITS
        if batch and (len(batch) == size or full):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _summed(scored: list[_Scored], skipped: Counter[str]) -> RowsScore:
    def parts(name: Callable[[_Scored], str]) -> dict[str, Score]:
        groups: dict[str, list[_Scored]] = {}
        for one in scored:
            groups.setdefault(name(one), []).append(one)
        return {key: _one(groups[key]) for key in sorted(groups)}

    return RowsScore(
        total=_one(scored),
        by_corpus=parts(lambda one: one.corpus),
        by_stage=parts(lambda one: one.stage),
        by_llm=parts(lambda one: one.llm),
        skipped=dict(skipped.most_common()),
    )


def _one(scored: Sequence[_Scored]) -> Score:
    tokens = sum(one.tokens for one in scored)
    nll = sum(one.nll for one in scored) / tokens
    middle = median(one.nll / one.tokens for one in scored)
    return Score(len(scored), tokens, nll, _exp(nll), middle, _exp(middle))


def _exp(nll: float) -> float:
    return exp(min(nll, 700.0))  # beyond, a float ends


def _context(model: Any) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _load(llm: str, device: str, dtype: str) -> tuple[Any, Any, str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve_source(llm)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    model = (
        AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), trust_remote_code=False)
        .to(device)
        .eval()
    )
    return model, AutoTokenizer.from_pretrained(source, trust_remote_code=False), llm_name(llm)


def _name(model: Any) -> str:
    return Path(getattr(model.config, "name_or_path", "") or type(model).__name__).name
