"""MMAU (v05.15.25): sound, music and speech, one of several options; predictions under ``model_output``."""

import random
from collections.abc import Sequence

from nemo_desta.evaluation.scorers import token_rule
from nemo_desta.evaluation.scorers.multiple_choice import listed_choices, strict_multiple_choice
from nemo_desta.evaluation.scores import Item, Quirk, Scores

KEY = "model_output"
FIELDS = ("task", "difficulty", "sub-category")
QUIRKS = (
    *token_rule.QUIRKS,
    Quirk("two names of one key", "the script reads 'model_output'; its README says 'model_prediction'"),
)


def official(items: Sequence[Item], *, rng: random.Random | None = None, key: str = KEY) -> Scores:
    """As the authors' script, which draws nothing: ``rng`` is not used. ``key``: field of the prediction."""
    return token_rule.official_scores(items, key, FIELDS)


def strict(items: Sequence[Item], *, key: str = KEY) -> Scores:
    """Every item counts, see `strict_multiple_choice`."""
    return strict_multiple_choice(items, key, listed_choices, FIELDS)
