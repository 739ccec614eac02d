"""Speech-IFEval: does a speech model still follow written instructions? Predictions under ``response``.

The benchmark has three parts. Rules check the instructions (``instruction_id_list``, ``kwargs``) of closed questions
and creative writing. A judge reads the chains of thought (``metric`` "cot"); its reply is under ``eval_response``. The
mean of the parts is the IFrate. Compared with the IFrate of the same LLM on text it gives the forgetting rate.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemo_desta.core.think_tags import without_thought
from nemo_desta.evaluation.ifeval import Tools, item_follows
from nemo_desta.evaluation.scorers.judged import judged_scorer
from nemo_desta.evaluation.scores import (
    Item,
    ItemError,
    JudgeAsk,
    Scores,
    Verdict,
    answer_of,
    name_of,
    need,
    tally,
    texts_of,
)

KEY = "response"
JUDGED_KEY = "eval_response"
PARTS = ("closed", "creative", "cot")
_TEXTS = texts_of(__file__)
QUIRKS = _TEXTS["quirks"]
_OFFICIAL_RESULT = re.compile(r"(?<=result:\s)(?:yes|no)", re.IGNORECASE)
_CLEAR_RESULT = re.compile(r"result\W{0,6}(yes|no)\b", re.IGNORECASE)


def official(
    items: Sequence[Item],
    *,
    tools: Tools | None = None,
    reference_ifrate: float | None = None,
) -> Scores:
    """The authors' rules.

    Args:
        tools: for NLTK's sentence splitter in place of ours, see `ifeval.Tools`.
        reference_ifrate: IFrate of the LLM that reads ``textual_audio`` as text; gives ``forgetting_rate``.
    """
    responses = [answer_of(item, KEY, i) or "" for i, item in enumerate(items)]
    return _score(items, responses, tools or Tools(), parse_judgement, reference_ifrate)


def strict(items: Sequence[Item], *, tools: Tools | None = None, reference_ifrate: float | None = None) -> Scores:
    """Think blocks are removed, keywords are plain text, and a judgement may have any clear form.

    Chains of thought without a judgement are None and named in ``left_out``; every other item counts.
    """
    responses = [without_thought(answer_of(item, KEY, i) or "") for i, item in enumerate(items)]
    return _score(items, responses, tools or Tools(keywords_are_patterns=False), _clear_judgement, reference_ifrate)


def part_of(item: Item, position: int) -> str:
    """``closed``, ``creative`` or ``cot``: the item's own ``part``, else by its ``metric``."""
    part = item.get("part")
    if part is None:
        part = {"cot": "cot", "open": "creative"}.get(need(item, "metric", position), "closed")
    if part not in PARTS:
        raise ItemError(name_of(item, position), f"part '{part}' is none of {', '.join(PARTS)}")
    return part


def _request(item: Item, position: int, response: str, rng: random.Random) -> Iterator[JudgeAsk]:
    """One request per chain of thought."""
    if part_of(item, position) == "cot" and JUDGED_KEY not in item:
        asked = need(item, "instruction", position)
        case = f"What the user asked:\n{asked}\n\nWhat the model replied:\n{response}"
        messages = [{"role": "system", "content": _TEXTS["rules"]}, {"role": "user", "content": case}]
        yield JudgeAsk(position, messages, 1.0)


def _put(item: dict[str, Any], ask: JudgeAsk, text: str | None) -> None:
    """A request without a reply leaves its item unjudged."""
    if text is not None:
        item[JUDGED_KEY] = text


judge_requests, with_judgements = judged_scorer(KEY, _request, _put)


def parse_judgement(text: str) -> str | None:
    """The yes or no that the official regular expression finds, as written; None if it finds none."""
    found = _OFFICIAL_RESULT.search(text)
    return found[0] if found else None


def forgetting_rate(ifrate: float, reference_ifrate: float) -> float:
    """The relative change of the IFrate against the reference; negative when instruction following got worse."""
    if reference_ifrate <= 0:
        raise ValueError(f"the reference's IFrate is {reference_ifrate}; a share above 0 is expected")
    return (ifrate - reference_ifrate) / reference_ifrate


def _score(
    items: Sequence[Item], responses: Sequence[str], tools: Tools, judged: Any, reference_ifrate: float | None
) -> Scores:
    parts = [part_of(item, i) for i, item in enumerate(items)]
    verdicts: list[Verdict] = []
    followed: dict[str, list[tuple[str, bool]]] = {part: [] for part in PARTS}
    unparsed = 0
    for i, (item, part, response) in enumerate(zip(items, parts, responses, strict=True)):
        if part != "cot":
            followed_here = item_follows(item, i, response, variant="speech", tools=tools)
            pairs = list(zip(item["instruction_id_list"], followed_here, strict=True))
            followed[part] += pairs
            verdicts.append(all(verdict for _, verdict in pairs))
            unparsed += not response.strip()
            continue
        text = answer_of(item, JUDGED_KEY, i)
        result = judged(text) if text is not None else None
        unparsed += text is not None and result is None
        verdicts.append(None if text is None else (result or "").lower() == "yes")
    totals: dict[str, Any] = {}
    for part in PARTS:
        counted = [v for v, p in zip(verdicts, parts, strict=True) if p == part and v is not None]
        if counted:
            totals[part] = sum(counted) / len(counted)
        if followed[part]:
            totals[f"{part}_instruction_level"] = sum(v for _, v in followed[part]) / len(followed[part])
    if all(part in totals for part in PARTS):
        totals["ifrate"] = sum(totals[part] for part in PARTS) / len(PARTS)
        if reference_ifrate is not None:
            totals["forgetting_rate"] = forgetting_rate(totals["ifrate"], reference_ifrate)
    unjudged = sum(v is None for v in verdicts)
    totals["left_out"] = [f"{unjudged} chains of thought without a judgement"] if unjudged else []
    return Scores(verdicts, totals, len(items), unparsed, _tables(parts, verdicts, followed))


def _tables(
    parts: Sequence[str], verdicts: Sequence[Verdict], followed: Mapping[str, Sequence[tuple[str, bool]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """The tables of the official report: by category, kind and group of kinds, for each part that rules check."""
    by = {"part": _table([(p, v) for p, v in zip(parts, verdicts, strict=True) if v is not None])}
    for part in ("closed", "creative"):
        if pairs := followed[part]:
            by[f"{part} / category"] = _table([(kind.split(":")[0], v) for kind, v in pairs])
            by[f"{part} / kind"] = _table(pairs)
            by[f"{part} / group"] = _table([(_TEXTS["groups"].get(kind, "other"), v) for kind, v in pairs])
    return by


def _table(pairs: Sequence[tuple[str, bool]]) -> dict[str, dict[str, float]]:
    return dict(sorted(tally(pairs).items()))


def _clear_judgement(text: str) -> str | None:
    """The yes or no after the last "result" (with up to six marks between), or a reply that is only yes or no."""
    found = _CLEAR_RESULT.findall(text) or re.findall(r"^\W*(yes|no)\W*$", text, flags=re.IGNORECASE)
    return found[-1] if found else None
