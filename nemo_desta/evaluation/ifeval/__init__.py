"""Instructions that a rule can check: the 25 kinds of IFEval, as VoiceBench and Speech-IFEval use them.

``variant="base"`` follows the rules of the original, ``"speech"`` those of Speech-IFEval, which differ in five kinds.
``loose`` ignores a first line, a last line and asterisks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.evaluation.ifeval.checks import CHECKS, SPEECH_CHECKS, Tools, arguments
from nemo_desta.evaluation.scores import Item, ItemError, name_of, need

VARIANTS = ("base", "speech")

__all__ = ["CHECKS", "VARIANTS", "Tools", "check", "follows", "item_follows", "loose_variants"]


def check(
    instruction_id: str,
    kwargs: Mapping[str, Any],
    response: str,
    *,
    variant: str = "base",
    tools: Tools | None = None,
) -> bool:
    """Whether ``response`` follows one instruction. A response of white space follows none.

    Args:
        instruction_id: such as ``keywords:existence``.
        kwargs: its arguments under their official names; None stands for an argument that the kind lacks.
        tools: how languages are detected and texts split; our own if not given.

    Raises:
        ValueError: an unknown kind or variant, or a missing argument.
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
    """One verdict per instruction of a prompt; ``loose``: one of `loose_variants` follows it."""
    if len(instruction_ids) != len(kwargs):
        raise ValueError(f"{len(instruction_ids)} instructions but {len(kwargs)} kwargs; each needs its own")
    texts = loose_variants(response) if loose else [response]
    pairs = zip(instruction_ids, kwargs, strict=True)
    return [any(check(i, k, text, variant=variant, tools=tools) for text in texts) for i, k in pairs]


def item_follows(item: Item, position: int, response: str, **options: Any) -> list[bool]:
    """`follows` for an item's ``instruction_id_list`` and ``kwargs``.

    Raises:
        ItemError: a field is missing, or an instruction cannot be checked.
    """
    kinds, kwargs = need(item, "instruction_id_list", position, list), need(item, "kwargs", position, list)
    try:
        return follows(kinds, kwargs, response, **options)
    except ValueError as error:
        raise ItemError(name_of(item, position), str(error)) from None


def loose_variants(response: str) -> list[str]:
    """The response unchanged, without its first line, its last, both; each with and without asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(re.sub(r"\*", "", text) for text in cut)]))
