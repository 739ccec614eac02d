"""Instructions that a rule can check: the 25 kinds of IFEval, as VoiceBench and Speech-IFEval use them.

``variant="base"`` holds to the rules of the original, ``"speech"`` to those of Speech-IFEval, which differ in five
kinds. ``loose`` forgives a first line, a last line and asterisks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.evaluation.ifeval.checks import CHECKS, SPEECH_CHECKS, Tools, arguments

VARIANTS = ("base", "speech")

__all__ = ["CHECKS", "VARIANTS", "Tools", "check", "follows", "loose_variants"]


def check(
    instruction_id: str,
    kwargs: Mapping[str, Any],
    response: str,
    *,
    variant: str = "base",
    tools: Tools | None = None,
) -> bool:
    """Does ``response`` obey one instruction? Nothing but white space obeys none.

    Args:
        instruction_id: such as ``keywords:existence``.
        kwargs: its arguments under their official names; None stands for an argument that the kind lacks.
        tools: how languages are told and texts cut; our own if not given.

    Raises:
        ValueError: an unknown kind or variant, or arguments that the kind needs and does not get.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant '{variant}'.{nearest(variant, VARIANTS)}")
    if instruction_id not in CHECKS:
        raise ValueError(f"unknown instruction '{instruction_id}'.{nearest(instruction_id, CHECKS)}")
    rule = CHECKS[instruction_id]
    if variant == "speech":
        rule = SPEECH_CHECKS.get(instruction_id, rule)
    given = arguments(instruction_id, rule, kwargs)
    return bool(response.strip()) and bool(rule(response, tools or Tools(), **given))


def follows(
    instruction_ids: Sequence[str],
    kwargs: Sequence[Mapping[str, Any]],
    response: str,
    *,
    variant: str = "base",
    loose: bool = False,
    tools: Tools | None = None,
) -> list[bool]:
    """One verdict per instruction of a prompt; ``loose``: one of `loose_variants` obeys."""
    if len(instruction_ids) != len(kwargs):
        raise ValueError(f"{len(instruction_ids)} instructions but {len(kwargs)} kwargs; each needs its own")
    texts = loose_variants(response) if loose else [response]
    pairs = zip(instruction_ids, kwargs, strict=True)
    return [any(check(i, k, text, variant=variant, tools=tools) for text in texts) for i, k in pairs]


def loose_variants(response: str) -> list[str]:
    """The response as it is, without its first line, its last, both; and each of the four without asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(re.sub(r"\*", "", text) for text in cut)]))
