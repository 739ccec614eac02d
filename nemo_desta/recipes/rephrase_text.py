"""Instructions and worked examples for the rewriter of `nemo_desta.recipes.rephrase`; rephrase_text.yaml has ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.config import check_keys
from nemo_desta.errors import ConfigError

_OURS = yaml.safe_load(Path(__file__).with_name("rephrase_text.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Example:
    """One answer by a reader of a description, and the same by a listener. An empty ``answer``: the text breaks off
    inside the thought.
    """

    thought: str
    answer: str
    heard_thought: str
    heard_answer: str


@dataclass(frozen=True)
class RephraseInstructions:
    """``system`` may be empty. ``neutral_tags``: names, in order of preference, of tags that replace think tags;
    ``answer_tags``: the same for the tags around the rewritten text; none: the whole answer is the rewritten text.
    A name that occurs as a tag in the answer is skipped.
    """

    system: str
    request: str
    thoughts: str
    neutral_tags: tuple[str, ...]
    answer_tags: tuple[str, ...]
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        if self.request.count("{text}") != 1:
            raise ConfigError("the rewriter's request must hold {text} once: the place of the answer to be rewritten")
        if self.examples and "{examples}" not in self.system + self.request:
            raise ConfigError("worked examples are given, but neither system nor request holds {examples}")
        if self.thoughts and "{thoughts}" not in self.system + self.request:
            raise ConfigError("a rule about thoughts is given, but neither system nor request holds {thoughts}")
        if bool(self.answer_tags) != ("{answer_open}" in self.system + self.request):
            raise ConfigError("system or request must hold {answer_open} if there are answer_tags, and only then")
        if not self.neutral_tags:
            raise ConfigError("neutral_tags is empty; think tags need at least one other name")
        for name in (*self.neutral_tags, *self.answer_tags):
            if not re.fullmatch(r"\w+", name):
                raise ConfigError(f"{name!r} is no tag name; use letters, digits and underscores, without brackets")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RephraseInstructions":
        """From plain settings, which replace ours. Raises ``ConfigError`` for an unknown key."""
        check_keys(config, _OURS, "instructions")
        values = {**_OURS, **config}
        for name in ("neutral_tags", "answer_tags"):
            values[name] = (values[name],) if isinstance(values[name], str) else tuple(values[name] or ())
        values["examples"] = tuple(Example(**one) for one in values["examples"] or ())
        return cls(**values)

    def messages(self, text: str, *, tag: str | None, answer_tag: str | None) -> list[dict[str, str]]:
        """The messages to the rewriter. ``tag``: name of the neutral tags in ``text``, None without a thought."""
        shown = [example for example in self.examples if tag or example.answer]
        values = {
            "{thoughts}": self.thoughts if tag else "",
            "{examples}": "\n\n".join(_show(number, e, tag, answer_tag) for number, e in enumerate(shown, start=1)),
        }
        for mark, name in (("", tag), ("answer_", answer_tag)):
            values |= {
                f"{{{mark}open}}": f"<{name}>" if name else "",
                f"{{{mark}close}}": f"</{name}>" if name else "",
            }
        filled = []
        for part in (self.system, self.request):
            for mark, value in values.items():
                part = part.replace(mark, value)
            filled.append(part.strip("\n"))
        system, request = filled
        messages = [{"role": "system", "content": system}] if system else []
        # The answer is inserted last, so that text in it that looks like a placeholder is kept.
        return [*messages, {"role": "user", "content": request.replace("{text}", text)}]


def _show(number: int, example: Example, tag: str | None, answer_tag: str | None) -> str:
    before, after = (
        f"<{tag}>\n{thought}\n</{tag}>\n\n{answer}".rstrip() if tag else answer
        for thought, answer in ((example.thought, example.answer), (example.heard_thought, example.heard_answer))
    )
    after = f"<{answer_tag}>\n{after}\n</{answer_tag}>" if answer_tag else after
    return f"--- Example {number}, text:\n{before}\n--- Example {number}, edited:\n{after}"


#: The default.
INSTRUCTIONS = RephraseInstructions.from_config({})
