"""AIR-Bench: foundation (options A to D, no judge) and chat (a judge compares with a reference).

Predictions are under ``response``. A row with ``choice_a`` is foundation, every other row is chat. A judgement of a
chat row is two numbers, the reference's and the model's. Under ``gpt-score`` the model is the second assistant, under
``gpt-score-swapped`` the first. The authors keep the swapped judgements in a separate file; `air_bench_chat.average`
computes what their script computes on either file.
"""

from collections.abc import Sequence

from nemo_desta.evaluation.scorers import air_bench_chat as chat
from nemo_desta.evaluation.scorers.air_bench_chat import judge_requests, parse_judgement, with_judgements
from nemo_desta.evaluation.scorers.multiple_choice import letter_of, lettered_choices, strict_verdict
from nemo_desta.evaluation.scores import (
    Item,
    ItemError,
    Scores,
    Verdict,
    accuracy_totals,
    groups,
    name_of,
    need,
    texts_of,
)

__all__ = ["judge_requests", "official", "parse_judgement", "strict", "with_judgements"]

KEY = "response"
FIELDS = ("task_name", "dataset_name", "task_name_dataset_name")
QUIRKS = (*texts_of(__file__)["quirks"], *chat.QUIRKS)


def official(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Foundation as the authors' script, chat by the judgements in the items.

    A chat verdict says whether the model, as the second assistant, beat the reference; None without a readable
    judgement.

    Raises:
        ItemError: where the official script stops: an answer of null, or a true answer that is none of the options.
    """
    items = _named(items)
    verdicts: list[Verdict] = []
    failed = 0
    for i, item in enumerate(items):
        if not _is_foundation(item):
            verdicts.append(chat.beats_reference(item, "gpt-score"))
            continue
        if item.get("task_name") is None or key not in item:
            verdicts.append(None)
            continue
        text, letter = letter_of(need(item, key, i))
        if text in ("", "None") or letter is None:
            failed += 1
            verdicts.append(None)
            continue
        verdicts.append(letter == _true_letter(item, i))
    foundation = [v for v, item in zip(verdicts, items, strict=True) if _is_foundation(item)]
    totals = {f"foundation_{name}": value for name, value in accuracy_totals(foundation).items()}
    totals["foundation_fail_num"] = failed
    totals.update(chat.totals([item for item in items if not _is_foundation(item)]))
    return Scores(verdicts, totals, len(items), failed, groups(items, verdicts, FIELDS))


def strict(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Foundation: every row counts, see `choose`. Chat: right when the model has more points than the reference over
    both orders. A judgement that cannot be parsed is wrong; rows without a judgement are named as left out."""
    items = _named(items)
    verdicts: list[Verdict] = []
    unparsed = unjudged = 0
    for i, item in enumerate(items):
        foundation = _is_foundation(item)
        if not foundation and not chat.is_judged(item):
            unjudged += 1
            verdicts.append(None)
            continue
        right = strict_verdict(item, i, key, *lettered_choices(item, i)) if foundation else chat.beats_reference(item)
        unparsed += right is None
        verdicts.append(right is True)
    totals = {**accuracy_totals(verdicts), "unparsed": unparsed}
    if unjudged:
        totals["left_out"] = f"{unjudged} chat rows without a judgement"
    return Scores(verdicts, totals, len(items), unparsed, groups(items, verdicts, FIELDS))


def _is_foundation(item: Item) -> bool:
    return "choice_a" in item


def _true_letter(item: Item, position: int) -> str:
    truth = need(item, "answer_gt", position)
    for letter in "ABCD":
        if truth == item.get(f"choice_{letter.lower()}"):
            return letter
    raise ItemError(name_of(item, position), f"the answer {truth!r} is none of its options")


def _named(items: Sequence[Item]) -> list[Item]:
    return [
        {**item, "task_name_dataset_name": f"{item['task_name']}_{item.get('dataset_name')}"}
        if item.get("task_name") is not None
        else item
        for item in items
    ]
