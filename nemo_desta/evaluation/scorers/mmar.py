"""MMAR: deep reasoning over sound, music, speech and their mixes; predictions under ``answer_prediction``.

The second metric of its authors, a judge's points for the reasoning by rubric, is not computed.
"""

from nemo_desta.evaluation.scorers import token_rule

KEY = "answer_prediction"
FIELDS = ("modality", "category", "sub-category")
QUIRKS = token_rule.QUIRKS

official, strict = token_rule.scorer(KEY, FIELDS)
