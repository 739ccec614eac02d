"""The judged part of a scorer: which requests the judge gets, and where its replies are stored."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_desta.evaluation.scores import Item, JudgeAsk, answer_of


@dataclass(frozen=True)
class JudgedScorer:
    """Builds judge requests from items and stores the replies in copies of the items.

    Attributes:
        key: field of the model's answer; an item without an answer is not judged.
        request: item, position, answer, generator with seed 0 -> the item's requests.
        put: stores the reply to one request in the item; the reply is None when the judge failed.
    """

    key: str
    request: Callable[[Item, int, str, random.Random], Iterable[JudgeAsk]]
    put: Callable[[dict[str, Any], JudgeAsk, str | None], None]

    def judge_requests(self, items: Sequence[Item]) -> list[JudgeAsk]:
        """The requests for all items that have an answer and no judgement yet.

        Raises:
            ItemError: an item lacks a field that the judge must read.
        """
        rng = random.Random(0)
        answers = [answer_of(item, self.key, i) for i, item in enumerate(items)]
        return [
            ask
            for i, (item, answer) in enumerate(zip(items, answers, strict=True))
            if answer is not None
            for ask in self.request(item, i, answer, rng)
        ]

    def with_judgements(
        self, items: Sequence[Item], asks: Sequence[JudgeAsk], texts: Sequence[str | None]
    ) -> list[dict[str, Any]]:
        """Copies of the items with the judge's replies."""
        judged = [dict(item) for item in items]
        for ask, text in zip(asks, texts, strict=True):
            self.put(judged[ask.index], ask, text)
        return judged
