"""Target perplexity: how likely the frozen LLM finds the responses of rows, given description and prompt.

It is the exponential of the mean negative log-likelihood per response token. DeSTA2.5-Audio explains with it why
self-generated targets work. Rows of another LLM or of people can be scored for comparison.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from math import exp
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from nemo_desta.core.prompting import Example, PromptBuilder
from nemo_desta.data.rows import JsonlIndex, Row
from nemo_desta.errors import RowError, row_guard
from nemo_desta.progress import Progress
from nemo_desta.recipes.ask import TEMPLATE, request_messages
from nemo_desta.recipes.engines.local import llm_name
from nemo_desta.recipes.report.sources import Paths, find_rows
from nemo_desta.sources import resolve_source

logger = logging.getLogger(__name__)

#: This many batches of rows are sorted by length together, so that batches have little padding.
_BATCHES_SORTED_TOGETHER = 16
#: Limit of rows x tokens x vocabulary in one batch, which ``batch_size`` does not change.
_MAX_LOGITS = 2**29


@dataclass(frozen=True)
class Score:
    """``nll``: nats per token over all tokens; ``perplexity``: exp(nll). ``median_row_*``: of the median row."""

    rows: int
    tokens: int
    nll: float
    perplexity: float
    median_row_nll: float
    median_row_perplexity: float


@dataclass(frozen=True)
class RowsScore:
    """The score of a set of rows, in total and by group. ``skipped``: rows that could not be scored, by reason."""

    total: Score
    by_corpus: dict[str, Score]
    by_stage: dict[str, Score]
    by_llm: dict[str, Score]
    skipped: dict[str, int]


@dataclass(frozen=True)
class Perplexity:
    """``own``: the rows in question; ``others``: name -> rows for comparison, scored by the same LLM."""

    llm: str
    own: RowsScore
    others: dict[str, RowsScore]

    def to_json(self) -> dict[str, Any]:
        """Plain data, the ``perplexity`` argument of `write_report`."""
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


class _Scored(NamedTuple):
    """``nll``: summed over the ``tokens`` of one response."""

    nll: float
    tokens: int
    corpus: str
    stage: str
    llm: str


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
    """Score ``rows`` (a recipe's output folder, JSONL files or patterns) and ``others`` for comparison under ``llm``.

    The LLM reads the wording in the ``recipe.json`` of ``rows``, or DeSTA2.5-Audio's wording without such a file, also
    for ``others``. The end-of-turn token is scored with the response unless the row is truncated. A rewritten response
    is scored like any other, given description and prompt: it is the target of the training.

    Args:
        llm: hub id, folder or ``package:<path>``; or a loaded (model, tokenizer).
        device: ``auto`` is a GPU if there is one. dtype: see `nemo_desta.ops.dtypes.as_dtype`.
        max_rows: maximum number of random rows of each set, drawn with ``seed``; None: all.

    Raises:
        FileNotFoundError: no rows. ValueError: nothing could be scored, or ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 row is scored at a time")
    if "own" in (others or {}):
        raise ValueError("others: the name 'own' is reserved for the rows in question; choose another")
    found = {"own": find_rows(rows)} | {name: find_rows(paths) for name, paths in (others or {}).items()}
    asked = found["own"].recipe.get("request") or {}
    began = found["own"].recipe.get("template_date")
    wording = {name: asked[name] for name in ("template", "system") if asked.get(name)}
    model, tokenizer = _load(llm, device, dtype) if isinstance(llm, str) else llm
    loaded = Path(getattr(model.config, "name_or_path", "") or type(model).__name__).name
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    date = datetime.fromisoformat(began) if began else None
    builder = PromptBuilder(tokenizer, audio_locator_tag, chat_template_kwargs, date=date)
    scores = {}
    for label, source in found.items():
        skipped: Counter[str] = Counter()
        index = JsonlIndex(source.rows)
        wanted: Sequence[int] = range(len(index))
        if max_rows is not None and max_rows < len(index):
            wanted = sorted(random.Random(seed).sample(wanted, max_rows))
        with Progress(f"perplexity, {label}", len(wanted), shown=progress) as bar:
            scored = []
            for first in range(0, len(wanted), batch_size * _BATCHES_SORTED_TOGETHER):
                window = wanted[first : first + batch_size * _BATCHES_SORTED_TOGETHER]
                examples = list(_examples(index, window, builder, wording, context, skipped))
                scored += _score(model, examples, batch_size)
                bar.update(len(window))
        if not scored:
            raise ValueError(f"{label}: none of {len(wanted)} rows could be scored ({dict(skipped)})")
        scores[label] = _summed(scored, skipped)
    return Perplexity(llm_name(llm) if isinstance(llm, str) else loaded, scores.pop("own"), scores)


def text_messages(
    row: Mapping[str, Any],
    audio_locator_tag: str = "<|AUDIO|>",
    *,
    template: str = TEMPLATE,
    system: str | None = None,
) -> list[dict[str, str]]:
    """The row's chat with the seed description instead of the audio, as the LLM read it to generate the response.

    ``template`` and ``system``: the recipe's wording for a row with one user message about one clip. In other rows the
    description precedes the first message about audio; a system text and earlier turns are kept.

    Raises:
        RowError: the row has no description, or no user message to put it into.
    """
    description = row.get("seed_description")
    if not isinstance(description, str) or not description.strip():
        raise RowError("no seed description", f"row '{row['id']}' has no seed_description to stand for its audio")
    messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
    own = messages[0]["content"] if messages[0]["role"] == "system" else None
    if len(messages) == 1 + (own is not None) and isinstance(row.get("prompt"), str):
        system = system if own is None else own
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


def _examples(
    index: JsonlIndex,
    wanted: Sequence[int],
    builder: PromptBuilder,
    wording: Mapping[str, str],
    context: int | None,
    skipped: Counter[str],
) -> Iterator[tuple[Row, Example]]:
    for number in wanted:
        try:
            with row_guard():
                row = index.row(number)
                text = {**row, "messages": text_messages(row, builder.audio_locator_tag, **wording)}
                example = builder.example(text)
            if context is not None and len(example.ids) > context:
                raise RowError("longer than the context", f"row '{row['id']}': {len(example.ids)} tokens of {context}")
        except RowError as error:
            skipped[error.reason] += 1
            logger.info("not scored: %s", error)
            continue
        yield row, example


def _score(model: Any, rows: Sequence[tuple[Row, Example]], batch_size: int) -> Iterator[_Scored]:
    """Score rows in batches of similar length."""
    import torch

    rows = sorted(rows, key=lambda pair: len(pair[1].ids))
    vocabulary = model.config.get_text_config().vocab_size
    while rows:
        size = 1
        while size < min(batch_size, len(rows)) and (size + 1) * len(rows[size][1].ids) * vocabulary <= _MAX_LOGITS:
            size += 1
        batch, rows = rows[:size], rows[size:]
        with torch.inference_mode():
            nlls = response_nlls(model, [example for _, example in batch])
        for (row, example), nll in zip(batch, nlls, strict=True):
            groups = (row.get("dataset") or row.get("corpus"), row.get("stage"), row.get("llm"))
            yield _Scored(nll, len(example.ids) - example.prompt_len, *(str(name or "not said") for name in groups))


def response_nlls(model: Any, examples: Sequence[Example]) -> list[float]:
    """Summed negative log-likelihood (nats) of each example's target, in one batch.

    Padding is on the right and masked. Logits are computed from the first target on, their losses in float32.
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


def _summed(scored: Sequence[_Scored], skipped: Counter[str]) -> RowsScore:
    def by(field: str) -> dict[str, Score]:
        parts: dict[str, list[_Scored]] = {}
        for one in scored:
            parts.setdefault(getattr(one, field), []).append(one)
        return {key: _mean(parts[key]) for key in sorted(parts)}

    return RowsScore(_mean(scored), by("corpus"), by("stage"), by("llm"), dict(skipped.most_common()))


def _mean(scored: Sequence[_Scored]) -> Score:
    tokens = sum(one.tokens for one in scored)
    nll = sum(one.nll for one in scored) / tokens
    middle = median(one.nll / one.tokens for one in scored)
    # exp(710) overflows.
    return Score(len(scored), tokens, nll, exp(min(nll, 700.0)), middle, exp(min(middle, 700.0)))


def _load(llm: str, device: str, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nemo_desta.ops.dtypes import as_dtype

    source = resolve_source(llm)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    number_format = as_dtype(dtype, device)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=number_format, trust_remote_code=False)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(source, trust_remote_code=False)
