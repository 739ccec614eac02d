"""Instructions and worked examples for the rewriter of `nemo_desta.recipes.rephrase`.

In these texts ``{text}`` stands for the answer to be rewritten, ``{examples}`` for the worked examples, ``{thoughts}``
for the rule about reasoning (empty where there is none), ``{open}``, ``{close}``, ``{answer_open}`` and
``{answer_close}`` for the tags. Any other brace is text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError


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
    thoughts: str = ""
    neutral_tags: tuple[str, ...] = ("reasoning", "pondering", "inner_voice")
    answer_tags: tuple[str, ...] = ("answer", "rewritten", "edited_text")
    examples: tuple[Example, ...] = ()

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
        """From plain settings; defaults are those of `INSTRUCTIONS`. Raises ``ConfigError`` for an unknown key."""
        known = [field.name for field in fields(cls)]
        if unknown := set(config) - set(known):
            raise ConfigError(
                f"unknown key {sorted(unknown)[0]!r} in instructions.{nearest(sorted(unknown)[0], known)}"
            )
        values = {name: getattr(INSTRUCTIONS, name) for name in known} | dict(config)
        for name in ("neutral_tags", "answer_tags"):
            values[name] = (values[name],) if isinstance(values[name], str) else tuple(values[name] or ())
        values["examples"] = tuple(e if isinstance(e, Example) else Example(**e) for e in values["examples"] or ())
        return cls(**values)

    def messages(self, text: str, *, tag: str | None, answer_tag: str | None) -> list[dict[str, str]]:
        """The messages to the rewriter. ``tag``: name of the neutral tags in ``text``, None without a thought."""
        system, request = (
            self._fill(part, tag=tag, answer_tag=answer_tag).strip("\n") for part in (self.system, self.request)
        )
        messages = [{"role": "system", "content": system}] if system else []
        # The answer is inserted last, so that text in it that looks like a placeholder is kept.
        return [*messages, {"role": "user", "content": request.replace("{text}", text)}]

    def _fill(self, part: str, *, tag: str | None, answer_tag: str | None) -> str:
        part = part.replace("{thoughts}", self.thoughts if tag else "")
        if "{examples}" in part:
            shown = [e for e in self.examples if tag or e.answer]
            examples = "\n\n".join(_show(number, e, tag, answer_tag) for number, e in enumerate(shown, start=1))
            part = part.replace("{examples}", examples)
        for mark, name in (("", tag), ("answer_", answer_tag)):
            part = part.replace(f"{{{mark}open}}", f"<{name}>" if name else "")
            part = part.replace(f"{{{mark}close}}", f"</{name}>" if name else "")
        return part


def _show(number: int, example: Example, tag: str | None, answer_tag: str | None) -> str:
    before, after = (
        f"<{tag}>\n{thought}\n</{tag}>\n\n{answer}".rstrip() if tag else answer
        for thought, answer in ((example.thought, example.answer), (example.heard_thought, example.heard_answer))
    )
    after = f"<{answer_tag}>\n{after}\n</{answer_tag}>" if answer_tag else after
    return f"--- Example {number}, text:\n{before}\n--- Example {number}, edited:\n{after}"


_SYSTEM = """\
You edit the words of somebody who answered a question about an audio clip. They never heard the clip. In its \
place they were handed a line of notes, of the kind

[00:00-00:04] Good morning, everyone. (Gender: female, Emotion: happy, Duration: 4s)
[00:00-00:10] (A dog barks while cars go by, Duration: 10s)

and it shows: they speak of what they read. Turn their text into what the same person would have written with the \
sound itself in their ears. You see neither the question nor the notes, and you need neither.

How to edit:
- Where a fact about the clip is read off the notes ("the description says", "it is labeled as", "according to the \
metadata", "the text mentions"), let it be heard instead ("I hear", "it sounds like", "the voice is", "going by \
the sound"). Spoken words are heard, too: nobody reads them.
- Leave no trace of notes of any kind: no description, caption, transcript, label, tag, field, or times in \
brackets. Do not say that something was given, listed, stated or provided.
- What the person knows from elsewhere, remembers, wants or plans does not come from the notes and stays as it is.
- Touch a few words and leave the others alone. Order, paragraphs, lists, format, tone, language and length stay.
- Correct nothing. A wrong conclusion stays wrong and a doubt stays a doubt. What the notes left open is something \
that cannot be made out by ear.
- Complete nothing. A text that breaks off in the middle breaks off at the same place after editing.
{thoughts}
Put the whole edited text, and only that, between {answer_open} and {answer_close}.

{examples}"""

_THOUGHTS = """\
- The part from {open} to {close} is what the person thought before answering. Edit it by the same rules. Both \
tags stay where they are, and neither part ever speaks of them.
"""

_REQUEST = """\
Here is the text to edit.

{text}

(End of the text. Reply with the edited text between {answer_open} and {answer_close}.)"""

_EXAMPLES = (
    # What is read becomes heard; the plan for the answer and general knowledge stay.
    Example(
        thought="""\
The user wants to know where this was recorded. The description lists "sizzling, clinking dishes, a tap running". \
Sizzling usually means something is being fried, and together with the tap that points to a kitchen. The caption \
doesn't say if it is a home or a restaurant, so I shouldn't claim either. Two sentences should do.""",
        answer="""\
Based on the description, this was most likely recorded in a kitchen: it mentions sizzling, clinking dishes and \
running water. Whether it is a private kitchen or a restaurant is not specified.""",
        heard_thought="""\
The user wants to know where this was recorded. I hear sizzling, clinking dishes, a tap running. Sizzling usually \
means something is being fried, and together with the tap that points to a kitchen. The sound doesn't tell me if \
it is a home or a restaurant, so I shouldn't claim either. Two sentences should do.""",
        heard_answer="""\
By the sound of it, this was most likely recorded in a kitchen: there is sizzling, clinking dishes and running \
water. Whether it is a private kitchen or a restaurant cannot be made out.""",
    ),
    # A wrong conclusion stays wrong; times in brackets go.
    Example(
        thought="""\
Okay, how many people talk here? There are two segments, [00:00-00:03] and [00:03-00:07], both tagged Speaker: \
first. Two segments, so that must be two people. Let me answer with the number and a reason.""",
        answer="Two people are talking, since the transcript has two separate turns.",
        heard_thought="""\
Okay, how many people talk here? I hear two stretches of speech, one right after the other, both in the same \
voice. Two stretches, so that must be two people. Let me answer with the number and a reason.""",
        heard_answer="Two people are talking, since I hear two separate turns.",
    ),
    # The format is kept to the letter; an attribute that the notes left out cannot be heard.
    Example(
        thought="""\
JSON with the keys "instrument", "tempo" and "player_age". Instrument: the metadata says acoustic guitar. Tempo is \
given as slow. The age of the player isn't provided anywhere in the text, so null is the honest value.""",
        answer="""\
{"instrument": "acoustic guitar", "tempo": "slow", "player_age": null, "remark": "no age in the metadata"}""",
        heard_thought="""\
JSON with the keys "instrument", "tempo" and "player_age". Instrument: I can hear an acoustic guitar. The tempo \
sounds slow. The age of the player can't be made out anywhere in the music, so null is the honest value.""",
        heard_answer="""\
{"instrument": "acoustic guitar", "tempo": "slow", "player_age": null, "remark": "the age cannot be heard"}""",
    ),
    # A thought that breaks off stays broken off, in the middle of its sentence.
    Example(
        thought="""\
The task is to guess the mood before the speaker's next words. The transcription reads "I told you not to open \
that door", and the label for emotion is anger. I know that people who are angry and whisper are often also \
afraid, but nothing in the given information says that he whispers. Volume is listed as loud, which would rather""",
        answer="",
        heard_thought="""\
The task is to guess the mood before the speaker's next words. He says "I told you not to open that door", and he \
sounds angry. I know that people who are angry and whisper are often also afraid, but nothing in the voice \
suggests that he whispers. It comes across as loud, which would rather""",
        heard_answer="",
    ),
    # Speech that itself is about reading is left alone.
    Example(
        thought="""\
Which book is meant? According to the text the woman says she read the description on the back cover and put the \
novel away again. No title is mentioned in the transcript.""",
        answer="""\
The text does not name the book. The woman only says that she read the description on its back cover and then lost \
interest in it.""",
        heard_thought="""\
Which book is meant? I hear the woman say she read the description on the back cover and put the novel away again. \
She never says a title.""",
        heard_answer="""\
I do not hear the name of the book. The woman only says that she read the description on its back cover and then \
lost interest in it.""",
    ),
)

#: The default.
INSTRUCTIONS = RephraseInstructions(_SYSTEM, _REQUEST, _THOUGHTS, examples=_EXAMPLES)
