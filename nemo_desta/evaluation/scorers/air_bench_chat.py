"""AIR-Bench's chat part: the judge's prompt, how its two numbers are parsed, and the official averages."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from nemo_desta.evaluation.scorers.judged import judged_scorer
from nemo_desta.evaluation.scores import Item, ItemError, JudgeAsk, Verdict, name_of, need, texts_of

STRAIGHT, SWAPPED = "gpt-score", "gpt-score-swapped"
_TEXTS = texts_of(__file__)
QUIRKS = _TEXTS["quirks"]
#: Task -> group of the official averages.
TASKS: dict[str, str] = _TEXTS["groups"]


def _request(item: Item, position: int, response: str, rng: random.Random) -> Iterator[JudgeAsk]:
    """Two requests per chat row, one in each order (``turn`` 0: the model is assistant 2; 1: it is assistant 1).

    The judge reads ``meta_info``, the description of the audio.
    """
    if "choice_a" in item:
        return
    for turn, key in enumerate((STRAIGHT, SWAPPED)):
        temperature = 2.0 if rng.random() < 0.5 else 1.0
        if key in item:
            continue
        answers = [need(item, "answer_gt", position), response]
        first, second = answers[::-1] if turn else answers
        description, question = need(item, "meta_info", position), need(item, "question", position)
        text = _TEXTS["prompt"].format(description=description, question=question, first=first, second=second)
        yield JudgeAsk(position, [{"role": "user", "content": text}], temperature, 1.0, 1024, turn)


def _put(item: dict[str, Any], ask: JudgeAsk, text: str | None) -> None:
    """A failed request is stored as an empty line."""
    item[SWAPPED if ask.turn else STRAIGHT] = text or ""


judge_requests, with_judgements = judged_scorer("response", _request, _put)


def parse_judgement(text: str) -> tuple[int, int] | None:
    """The two columns; None when they are not two whole numbers up to 10, one space apart."""
    parts = text.strip().replace("\n", "").split(" ")
    if len(parts) != 2:
        return None
    try:
        first, second = int(parts[0]), int(parts[1])
    except ValueError:
        return None
    return None if first > 10 or second > 10 else (first, second)


def is_judged(item: Item) -> bool:
    """Whether the item holds a judge's reply."""
    return STRAIGHT in item or SWAPPED in item


def beats_reference(item: Item, *keys: str) -> Verdict:
    """Whether the model has more points than the reference, over ``keys`` (both orders); None if none can be read."""
    model = reference = 0
    readable = False
    for key in keys or (STRAIGHT, SWAPPED):
        pair = parse_judgement(item[key]) if isinstance(item.get(key), str) else None
        if pair is not None:
            readable = True
            model += pair[1] if key == STRAIGHT else pair[0]
            reference += pair[0] if key == STRAIGHT else pair[1]
    return model > reference if readable else None


def average(items: Sequence[Item], *, swapped: bool = False, key: str = STRAIGHT) -> dict[str, Any]:
    """As the official averaging script on one file (``swapped``: the one where the model is first).

    Returns ``Sum``, ``Win_Rate`` (of the model), ``gpt4_avg_score`` (column 1) and ``llm_avg_score`` (column 2) per
    group, and ``fail_num``, ``success_num``, ``percentage``. A group without readable rows is left out; the official
    script stops there.

    Raises:
        ItemError: the first row's task is unknown, or a judgement is no text.
    """
    sums = {group: [0, 0, 0, 0] for group in dict.fromkeys(TASKS.values())}
    group, failed, succeeded = None, 0, 0
    for i, item in enumerate(items):
        group = TASKS.get(item.get("task_name"), group)
        if group is None:
            raise ItemError(
                name_of(item, i), f"unknown chat task {item.get('task_name')!r}; known: {', '.join(TASKS)}"
            )
        text = need(item, key, i)
        succeeded += len(text.strip().replace("\n", "").split(" ")) == 2
        pair = parse_judgement(text)
        if pair is None:
            failed += 1
            continue
        won = pair[0] > pair[1] if swapped else pair[1] > pair[0]
        sums[group] = [a + b for a, b in zip(sums[group], (1, won, *pair), strict=True)]
    result: dict[str, Any] = {
        name: {"Sum": n, "Win_Rate": won / n, "gpt4_avg_score": first / n, "llm_avg_score": second / n}
        for name, (n, won, first, second) in sums.items()
        if n
    }
    tried = succeeded + failed
    return {
        **result,
        "fail_num": failed,
        "success_num": succeeded,
        "percentage": succeeded / tried if tried else 0.0,
    }


def totals(items: Sequence[Item]) -> dict[str, Any]:
    """Flat figures of the judged rows: the model's mean points per group over the judged orders, and mixed audio (the
    mean of speech_and_sound and speech_and_music)."""
    figures: dict[str, Any] = {}
    points: dict[str, list[float]] = {}
    for key, column in ((STRAIGHT, "llm_avg_score"), (SWAPPED, "gpt4_avg_score")):
        rows = [item for item in items if key in item]
        if not rows:
            continue
        found = average(rows, swapped=key == SWAPPED, key=key)
        order = "swapped" if key == SWAPPED else "straight"
        for name in ("fail_num", "success_num", "percentage"):
            figures[f"chat_{order}_{name}"] = found[name]
        for name in sorted(found.keys() & set(TASKS.values())):
            figures[f"chat_{order}_{name}_win_rate"] = found[name]["Win_Rate"]
            points.setdefault(name, []).append(found[name][column])
    means = {name: sum(values) / len(values) for name, values in points.items()}
    if {"speech_and_sound", "speech_and_music"} <= means.keys():
        means["mixed_audio"] = (means["speech_and_sound"] + means["speech_and_music"]) / 2
    figures.update({f"chat_{name}": value for name, value in means.items()})
    unjudged = sum(not is_judged(item) for item in items)
    if unjudged:
        figures["left_out"] = f"{unjudged} chat rows without a judgement"
    return figures
