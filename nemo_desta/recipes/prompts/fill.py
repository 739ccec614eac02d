"""Multiple-choice and yes-no prompts from a clip's attributes: fills the slots of templates, seeded.

The right value comes from the clip, wrong ones from lists of possible values. The position of the right value is
uniformly random. Only the filled prompt is returned, not the answer key.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.recipes.describe import _values as texts_of
from nemo_desta.recipes.languages import ENGLISH, Language
from nemo_desta.recipes.prompts.prompt import SLOT, Prompt

#: Values of attributes by name. An entry is one value, or several synonyms separated by "|" (happy|joyful) that must
#: not be offered together.
ValueLists = Mapping[str, Sequence[str]]


_NO_BLANKS = re.compile("[\u3041-\u30ff\u3400-\u9fff]")


def fill(
    prompt: Prompt,
    row: Mapping[str, Any],
    *,
    seed: int,
    values: ValueLists | None = None,
    language: Language = ENGLISH,
) -> Prompt | None:
    """The prompt filled for one clip; unchanged if it has no slots.

    ``{options}``: lettered lines; ``{options_or_none}``: the same with a last "None of these", which is right where
    the true value was left out (1 in the number of options); ``{choices}``: "x, y, or z"; ``{pair}``: "x or y";
    ``{value}``: the true or a wrong value, equally likely. ``values`` of an attribute replace the known lists. In
    another ``language``, ``row`` has its values in that language (`Language.localize`), and so have the known lists.
    None: no valid question is possible, because speakers differ or no wrong value is known.
    """
    if "{" not in prompt.prompt or not (slot := SLOT.search(prompt.prompt)):
        return prompt
    name = prompt.requires[0]
    true = true_values(row, name)
    if not true:
        return None
    rng = random.Random(f"{seed}:{row['id']}:{prompt.prompt_id}")
    right = rng.choice(true)
    wrong = _wrong_values(name, true, right, values, rng, language)
    if not wrong:
        return None
    right = _in_style(right, wrong)
    which = slot.group(1)
    if which == "value":
        shown = right if rng.random() < 0.5 else wrong[0]
    else:
        count = 2 if which == "pair" else rng.choice((3, 4, 4, 5))
        with_none = which == "options_or_none"
        options = wrong[: count - 1 - with_none]
        if with_none and rng.random() * (len(options) + 2) < 1 and len(wrong) > len(options):
            options.append(wrong[len(options)])
            rng.shuffle(options)
        else:
            options.insert(rng.randrange(len(options) + 1), right)
        if which.startswith("options"):
            options += [language.choices.none] if with_none else []
            style = rng.choice(("{}. {}", "{}) {}", "({}) {}"))
            lines = "\n".join(map(style.format, "ABCDEFGH", options))
            before, after = prompt.prompt.split(slot.group(), 1)
            return replace(prompt, prompt=f"{before.rstrip()}\n{lines}\n{after.lstrip()}".rstrip())
        words = language.choices
        last = words.last if len(options) > 2 else words.pair
        shown = f"{words.between.join(options[:-1])}{last}{options[-1]}"
    return replace(prompt, prompt=prompt.prompt.replace(slot.group(), shown))


def true_values(row: Mapping[str, Any], name: str) -> list[str]:
    """The clip's values of ``name``; several if several are right (two sounds in one clip). Empty if unknown or if it
    differs between speakers, so that no single answer is right."""
    segments, speakers = row.get("segments") or [], row.get("speakers") or {}
    parts = [row.get("attributes"), *(s.get("attributes") for s in segments), *speakers.values()]
    found = [tuple(texts_of((part or {}).get(name))) for part in parts]
    if name == "number_of_speakers" and not found[0]:
        return [str(n)] if (n := len({s["speaker"] for s in segments if s.get("speaker") is not None})) else []
    known = set(found) - {()}
    return list(known.pop()) if len(known) == 1 else []


class _Values:
    """One list of possible values. ``closed``: used only for clips whose value is on the list."""

    def __init__(self, entries: Sequence[str], closed: bool) -> None:
        self.groups = [str(entry).split("|") for entry in entries]
        self.members = {value.casefold(): number for number, group in enumerate(self.groups) for value in group}
        self.closed = closed


@lru_cache(maxsize=16)
def _known_values(language: Language = ENGLISH) -> dict[str, list[_Values]]:
    """In another language without the values that it has no word for."""
    file = Path(__file__).with_name("values.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: [_Values(_in_language(name, entries, language), closed=name in content["closed"]) for entries in lists]
        for name, lists in (content["closed"] | content["open"]).items()
    }


def _in_language(name: str, entries: Sequence[str], language: Language) -> list[str]:
    if not language.values:
        return list(entries)
    table = language.values.get("any", {}) | language.values.get(name, {})
    groups = [[one if one.isdigit() else table.get(one.lower()) for one in str(entry).split("|")] for entry in entries]
    unique = [list(dict.fromkeys(filter(None, group))) for group in groups]
    return ["|".join(group) for group in unique if group]


def _wrong_values(
    name: str,
    true: Sequence[str],
    right: str,
    values: ValueLists | None,
    rng: random.Random,
    language: Language = ENGLISH,
) -> list[str]:
    """Wrong values in random order, one per entry of the right value's list; none that could also be right."""
    known = _known_values(language)
    lists = [_Values(values[name], closed=False)] if values and name in values else known.get(name, [])
    fitting = [one for one in lists if right.casefold() in one.members] or [one for one in lists if not one.closed]
    if not fitting:
        return []
    on = fitting[0]
    taken = {on.members[value.casefold()] for value in true if value.casefold() in on.members}
    wrong = [rng.choice(group) for number, group in enumerate(on.groups) if number not in taken]
    rng.shuffle(wrong)
    return [value for value in wrong if not any(_overlap(value, known) for known in true)]


def _overlap(a: str, b: str) -> bool:
    """Whether one's words occur in the other, as "guitar" in "acoustic guitar": both may then be right."""
    if _NO_BLANKS.search(a):
        return a in b or b in a
    words = [re.findall(r"\w+", value.casefold()) for value in (a, b)]
    a, b = (f" {' '.join(found)} " for found in words)
    return a in b or b in a


def _in_style(right: str, wrong: Sequence[str]) -> str:
    """The right value with its first letter cased like the wrong ones, so that it does not stand out."""
    right = right.replace("_", " ")
    if all(value[:1].islower() for value in wrong):
        return right.lower()
    return right[:1].upper() + right[1:] if all(value[:1].isupper() for value in wrong) else right
