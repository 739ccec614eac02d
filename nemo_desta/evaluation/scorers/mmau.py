"""MMAU (v05.15.25): sound, music and speech, one of several options; predictions under ``model_output``."""

from nemo_desta.evaluation.scorers import token_rule
from nemo_desta.evaluation.scores import Quirk

KEY = "model_output"
FIELDS = ("task", "difficulty", "sub-category")
QUIRKS = (
    *token_rule.QUIRKS,
    Quirk("two names of one key", "the script reads 'model_output'; its README says 'model_prediction'"),
)

official, strict = token_rule.scorer(KEY, FIELDS)
