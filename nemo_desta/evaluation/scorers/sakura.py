"""SAKURA: perception questions (single hop) and questions that reason from them (multi hop), on four tracks.

The prediction is under ``response``, the judge's reply under ``Explanation`` and ``Judgement``. An item is one
question: ``track``, ``hop`` (single or multi), ``instruction`` (with its lettered options) and ``answer`` ("(a) dog").
A judge decides the official accuracy. The strict one reads the chosen option from the response, without a judge.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from nemo_desta.evaluation.scorers.judged import judged_scorer
from nemo_desta.evaluation.scorers.multiple_choice import strict_multiple_choice
from nemo_desta.evaluation.scores import (
    Item,
    JudgeAsk,
    Scores,
    Verdict,
    accuracy_totals,
    groups,
    need,
    texts_of,
)

KEY = "response"
FIELDS = ("track", "hop", "track / hop")
_TEXTS = texts_of(__file__)
QUIRKS = _TEXTS["quirks"]
NOT_EXTRACTED = {"Explanation": "No extracted explanation", "Judgement": "No extracted judgement"}

_JUDGEMENT = re.compile(r"Explanation: (.*?)\nJudgement: (.*?)(?:\n\n|$)", re.DOTALL)
_OPTION = re.compile(r"\(([a-zA-Z])\)\s*(.+?)(?=\s*[,;.]?\s*(?:\b(?:and|or)\s+)?\([a-zA-Z]\)|\s*$)", re.DOTALL)


def official(items: Sequence[Item]) -> Scores:
    """Accuracy by the judgements in the items. Raises NotImplementedError: no item has a judgement."""
    if items and not any("Judgement" in item for item in items):
        raise NotImplementedError("sakura is judged by a language model; no item has a 'Judgement'")
    read = [_verdict(item) for item in items]
    verdicts: list[Verdict] = [verdict is True for verdict in read]
    totals = {**accuracy_totals(verdicts), "incorrect": read.count(False), "invalid": read.count(None)}
    return Scores(verdicts, totals, len(items), read.count(None), groups(_grouped(items), verdicts, FIELDS))


def strict(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Without a judge: the options are read from the question, see `strict_multiple_choice`."""
    return strict_multiple_choice(_grouped(items), key, _read, FIELDS)


def options_of(instruction: str, answer: str) -> list[str]:
    """The lettered options in a question, each as "(a) dog".

    ``answer`` replaces the option with its letter; without such a letter it is appended.
    """
    options = [f"({letter}) {text.strip()}" for letter, text in _OPTION.findall(instruction)]
    answer = answer.strip()
    same_letter = [i for i, option in enumerate(options) if option[:3].lower() == answer[:3].lower()]
    if len(same_letter) == 1:
        options[same_letter[0]] = answer
    elif answer not in options:
        options.append(answer)
    return options


def parse_judgement(text: str) -> dict[str, str]:
    """``Explanation`` and ``Judgement`` as the official script extracts them (`NOT_EXTRACTED` where it cannot)."""
    found = _JUDGEMENT.search(text)
    return {"Explanation": found[1], "Judgement": found[2]} if found else dict(NOT_EXTRACTED)


def _request(item: Item, position: int, response: str, rng: random.Random) -> Iterator[JudgeAsk]:
    """One request per item."""
    if "Judgement" not in item:
        messages = [{"role": "system", "content": _TEXTS["rules"]}]
        for one in _TEXTS["examples"]:
            messages.append({"role": "user", "content": _case(one["question"], one["answer"], one["response"])})
            messages.append({"role": "assistant", "content": one["judgement"]})
        case = _case(need(item, "instruction", position), need(item, "answer", position), response)
        yield JudgeAsk(position, [*messages, {"role": "user", "content": case}], 0.0, 0.9)


def _put(item: dict[str, Any], ask: JudgeAsk, text: str | None) -> None:
    item.update(parse_judgement(text or ""))


judge_requests, with_judgements = judged_scorer(KEY, _request, _put)


def _verdict(item: Item) -> Verdict:
    return {"correct": True, "incorrect": False}.get(str(item.get("Judgement")).strip().lower())


def _read(item: Item, position: int) -> tuple[list[str], str]:
    answer = need(item, "answer", position)
    return options_of(need(item, "instruction", position), answer), answer.strip()


def _grouped(items: Sequence[Item]) -> list[Item]:
    return [
        {**item, "track / hop": f"{item['track']} / {item['hop']}"} if "track" in item and "hop" in item else item
        for item in items
    ]


def _case(question: str, answer: str, response: str) -> str:
    return f"[Question]\n{question}\n\n[True answer]\n{answer}\n\n[Response]\n{response}"
