"""The judged part of a scorer: which requests the judge gets, and where its replies are stored."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nemo_desta.evaluation.scores import Item, JudgeAsk, answer_of


def judged_scorer(
    key: str,
    request: Callable[[Item, int, str, random.Random], Iterable[JudgeAsk]],
    put: Callable[[dict[str, Any], JudgeAsk, str | None], None],
) -> tuple[Callable[..., list[JudgeAsk]], Callable[..., list[dict[str, Any]]]]:
    """``judge_requests`` and ``with_judgements`` of a scorer.

    Args:
        key: field of the model's answer; an item without an answer is not judged.
        request: item, position, answer, generator with seed 0 -> the item's requests.
        put: stores the reply to one request in the item; the reply is None when the judge failed.
    """

    def judge_requests(items: Sequence[Item]) -> list[JudgeAsk]:
        """The requests for all items that have an answer and no judgement yet.

        Raises:
            ItemError: an item lacks a field that the judge must read.
        """
        rng = random.Random(0)
        answers = [answer_of(item, key, i) for i, item in enumerate(items)]
        given = [(i, answer) for i, answer in enumerate(answers) if answer is not None]
        return [ask for i, answer in given for ask in request(items[i], i, answer, rng)]

    def with_judgements(
        items: Sequence[Item], asks: Sequence[JudgeAsk], texts: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        """Copies of the items with the judge's replies."""
        judged = [dict(item) for item in items]
        for ask, text in zip(asks, texts, strict=True):
            put(judged[ask.index], ask, text)
        return judged

    return judge_requests, with_judgements
