"""VoiceBench's judged subsets: the judge's prompts (three samples per item), and how its replies are parsed."""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nemo_desta.evaluation.scorers.judged import judged_scorer
from nemo_desta.evaluation.scores import Item, ItemError, JudgeAsk, Verdict, name_of, need, texts_of

#: The rows of one subset: (position, item, response).
Rows = list[tuple[int, Item, str]]
#: Verdicts of one subset's rows, its totals, the number of unparsed answers.
Part = tuple[list[Verdict], dict[str, float], int]

OPEN = ("alpacaeval", "alpacaeval_full", "commoneval", "wildvoice")
QA = ("sd-qa",)
DRAWS = 3
_TEMPERATURE, _TOP_P, _MAX_NEW_TOKENS = 0.5, 0.95, 1024
_TEXTS = texts_of(__file__)


def _request(item: Item, position: int, response: str, rng: random.Random) -> Iterator[JudgeAsk]:
    """`DRAWS` samples for every item of a judged subset without a ``score``."""
    subset = item.get("subset")
    if subset not in OPEN + QA or item.get("score") is not None:
        return
    fields = {"prompt": need(item, "prompt", position), "response": response}
    if subset in QA:
        fields["reference"] = need(item, "reference", position)
    messages = [{"role": "user", "content": _TEXTS["qa" if subset in QA else "open"].format(**fields)}]
    for turn in range(DRAWS):
        yield JudgeAsk(position, messages, _TEMPERATURE, _TOP_P, _MAX_NEW_TOKENS, turn)


def _put(item: dict[str, Any], ask: JudgeAsk, text: str | None) -> None:
    """Replies are listed under ``score``; a failed request adds nothing."""
    if text is not None:
        item.setdefault("score", []).append(text)


judge_requests, with_judgements = judged_scorer("response", _request, _put)


def parse_judgement(text: str) -> float | str | None:
    """A rating, else a vote ("yes" or "no"), else None."""
    number = rating(text, strict=True)
    return number if number is not None else vote(text)


def rating(text: str, *, strict: bool) -> float | None:
    """A number, or a number in double square brackets.

    ``strict``: it must be from 1 to 5; a text that names exactly one such number is accepted as well.
    """
    try:
        value = float(text)
    except ValueError:
        found = re.search(r"\[\[(\d{1,9})\]\]", text)
        if strict and found is None:
            named = set(re.findall(r"(?<![\d.\-/])[1-5](?![\d/]|\.\d)", text))
            found = re.match(r"(.)", named.pop()) if len(named) == 1 else None
        value = float(found[1]) if found else math.nan
    if not math.isfinite(value) or strict and not 1 <= value <= 5:
        return None
    return value


def vote(text: str) -> str | None:
    """yes or no, if the text holds exactly one of the two words."""
    said = {word.lower() for word in re.findall(r"\b(yes|no)\b", text, flags=re.IGNORECASE)}
    return said.pop() if len(said) == 1 else None


def open_rule(left_out: list[str], *, strict: bool) -> Callable[[Rows], Part]:
    def rule(rows: Rows) -> Part:
        ratings = [[rating(text, strict=strict) for text in _texts(item, i)] for i, item, _ in rows]
        subset = rows[0][1]["subset"]
        known = [value for each in ratings for value in each if value is not None]
        unjudged, unread = sum(not each for each in ratings), sum(None in each for each in ratings)
        if unjudged:
            left_out.append(f"{subset}: {unjudged} items without a judge's score")
        if unread:
            left_out.append(f"{subset}: {unread} items with a judge's reply that holds no score")
        return [None] * len(rows), {"gpt": math.fsum(known) / len(known)} if known else {}, unread

    return rule


def votes_of(rows: Rows, left_out: list[str], decide: Callable[[Sequence[str]], bool | None]) -> Part:
    """Verdicts by the judge's votes; None for a row without votes."""
    votes = [_texts(item, i) for i, item, _ in rows]
    read = [decide(texts) if texts else None for texts in votes]
    if unjudged := sum(not texts for texts in votes):
        left_out.append(f"sd-qa: {unjudged} items without a judge's votes")
    verdicts: list[Verdict] = [verdict is True if texts else None for verdict, texts in zip(read, votes, strict=True)]
    judged = [verdict for verdict in verdicts if verdict is not None]
    missed = sum(bool(texts) and verdict is None for verdict, texts in zip(read, votes, strict=True))
    return verdicts, {"gpt": percent(judged)} if judged else {}, missed


def majority(votes: Sequence[str | None]) -> bool | None:
    """Whether yes has the most votes (a tie with yes counts as yes); None when no vote says yes or no."""
    if not any(vote in ("yes", "no") for vote in votes):
        return None
    counts = Counter(votes)
    return counts["yes"] == max(counts.values())


def _texts(item: Item, position: int) -> list[str]:
    """The judge's replies for an item; empty without a ``score``."""
    given = item.get("score")
    if given is None:
        return []
    if not isinstance(given, (list, tuple)):
        raise ItemError(name_of(item, position), f"'score' is {type(given).__name__}, a list of texts is expected")
    return [str(text) for text in given]


def percent(verdicts: Sequence[Verdict]) -> float:
    return sum(verdict is True for verdict in verdicts) / len(verdicts) * 100
