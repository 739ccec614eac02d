"""MMAR: deep reasoning over sound, music, speech and their mixes; predictions under ``answer_prediction``.

The second metric of its authors, a judge's points for the reasoning by rubric, is not computed.
"""

import random
from collections.abc import Sequence

from nemo_desta.evaluation.scorers import token_rule
from nemo_desta.evaluation.scorers.multiple_choice import listed_choices, strict_multiple_choice
from nemo_desta.evaluation.scores import Item, Scores

KEY = "answer_prediction"
FIELDS = ("modality", "category", "sub-category")
QUIRKS = token_rule.QUIRKS


def official(items: Sequence[Item], *, rng: random.Random | None = None, key: str = KEY) -> Scores:
    """As the authors' script, which draws nothing: ``rng`` is not used. ``key``: field of the prediction."""
    return token_rule.official_scores(items, key, FIELDS)


def strict(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Every item counts, see `strict_multiple_choice`."""
    return strict_multiple_choice(items, key, listed_choices, FIELDS)
