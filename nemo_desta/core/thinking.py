"""Think blocks: where they begin, and how a raw answer is split into thought and answer and joined again.

A raw answer is the text that continues the generation prompt. The opening tag is written by the template (then the raw
answer begins inside the thought) or by the LLM, depending on the LLM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_desta.core.prompting import Message, PromptBuilder
from nemo_desta.core.think_tags import KNOWN_TAGS, ThinkTags
from nemo_desta.errors import RowError

QUESTION = ({"role": "user", "content": "question"},)
#: Ids at the end of a prompt that contain an opening tag and the white space after it.
_MAX_TAG_TOKENS = 32
#: The end that is forced on a thought that exceeds its budget.
CUT_SENTENCE = "My time for thinking is over, so I give my answer now from what I have so far."


@dataclass(frozen=True)
class ThinkFormat:
    """Where an LLM's think block begins.

    ``opening``: the end of the generation prompt from the opening tag on (``<think>\\n``); empty when the LLM writes
    the tag itself or leaves the block out.
    """

    tags: ThinkTags = ThinkTags()
    opening: str = ""

    @property
    def opened_by_template(self) -> bool:
        return bool(self.opening)


class Thought(NamedTuple):
    """The parts of a raw answer, white space included.

    ``thought`` None: there is no think block. ``answer`` None: the thought never ended. ``finished``: the thought, if
    any, was closed. ``lead``: white space before an opening tag that the LLM wrote.
    """

    thought: str | None
    answer: str | None
    finished: bool
    lead: str = ""


def think_format(
    prompts: PromptBuilder, tags: ThinkTags | None = None, *, messages: Sequence[Message] = QUESTION
) -> ThinkFormat | None:
    """How this LLM marks thoughts, found by rendering ``messages``; None if it does not think, for instance because of
    ``enable_thinking=False`` or of a system text that switches thoughts off (``/no_think`` of Nemotron Nano).

    ``tags``: the LLM's tags; None looks for `KNOWN_TAGS` in the chat template. They must be given for an LLM whose
    template does not contain them.
    """
    rendered = prompts.render(messages)
    template = prompts.tokenizer.chat_template
    source = template if isinstance(template, str) else "\n".join(template.values())
    for known in (tags,) if tags else KNOWN_TAGS:
        end = rendered.rstrip()
        if end.endswith(known.open):
            return ThinkFormat(known, opening=rendered[rendered.rindex(known.open) :])
        if end.endswith(known.close):  # the template has closed an empty block
            return None
        if tags or known.close in source:
            return ThinkFormat(known)
    return None


def format_of_prompt(prompts: PromptBuilder, format: ThinkFormat | None, ids: Sequence[int]) -> ThinkFormat | None:
    """``format``, which was found with a question, for the prompt ``ids``, whose system text may have closed the
    block."""
    if format is None or not format.opened_by_template:
        return format
    end = prompts.tokenizer.decode([token for token in ids[-_MAX_TAG_TOKENS:] if token >= 0]).rstrip()
    return format if end.endswith(format.tags.open) else ThinkFormat(format.tags)


class ThoughtCheck:
    """Checks that targets fit the think block at the end of their prompt.

    If the prompt opens the block, the target must begin with a thought. If it closes an empty block
    (``enable_thinking=False``), the target must have no thought. ``opened``, ``closed``: the tags of a question.
    """

    def __init__(self, prompts: PromptBuilder) -> None:
        self._prompts = prompts
        self.opened, self.closed = self._ends(QUESTION)

    def _ends(self, messages: Sequence[Message]) -> tuple[ThinkTags | None, ThinkTags | None]:
        end = self._prompts.render(messages).rstrip()
        opened = next((tags for tags in KNOWN_TAGS if end.endswith(tags.open)), None)
        return opened, next((tags for tags in KNOWN_TAGS if end.endswith(tags.close)), None)

    def problem(self, row: Mapping[str, Any]) -> RowError | None:
        """The error of a row's target, with the settings that help; None if it fits or its prompt is refused."""
        response = row["response"]
        try:
            opened, closed = self._ends(row["messages"])
        except RowError:
            return None
        if opened and opened.close not in response and not row.get("truncated"):
            return RowError(
                "no thought",
                f"the chat template opens a think block and the target has no {opened.close}: its answer would "
                "be learnt as a thought. Use chat_template_kwargs={enable_thinking: false} if the template knows it, "
                "the system text that switches thoughts off (Nemotron: /no_think), or rows with thoughts "
                "(self_rephrase)",
            )
        if closed and closed.close in response:
            return RowError(
                "late thought",
                f"the chat template has closed the think block and the target has a {closed.close}: use "
                "chat_template_kwargs={enable_thinking: true}, or rows without thoughts",
            )
        return None


def split(text: str, format: ThinkFormat | None) -> Thought:
    """The parts of a raw answer; ``join`` returns ``text`` again. The first closing tag ends the thought."""
    lead, inside = "", text
    if format is None or not format.opened_by_template:
        stripped = text.lstrip()
        if format is None or not stripped.startswith(format.tags.open):
            return Thought(None, text, True)
        lead, inside = text[: len(text) - len(stripped)], stripped[len(format.tags.open) :]
    thought, closed, answer = inside.partition(format.tags.close)
    return Thought(thought, answer if closed else None, bool(closed), lead)


def join(parts: Thought, format: ThinkFormat | None) -> str:
    """The inverse of ``split``. Raises ``ValueError`` for parts that no answer of this format has."""
    if parts.thought is None:
        if parts.answer is None or (format is not None and format.opened_by_template):
            raise ValueError(f"an answer needs a thought where the template opens one, or else a text; found {parts}")
        return parts.answer
    if format is None:
        raise ValueError("a thought, but the LLM has no think block")
    if parts.finished != (parts.answer is not None):
        raise ValueError(f"an answer follows a finished thought and no other; found {parts}")
    opening = "" if format.opened_by_template else f"{parts.lead}{format.tags.open}"
    return f"{opening}{parts.thought}{format.tags.close}{parts.answer}" if parts.finished else opening + parts.thought


def without_partial(text: str, tag: str) -> str:
    """``text`` without an incomplete tag at its end."""
    for length in range(len(tag) - 1, 1, -1):
        if text.endswith(tag[:length]):
            return text[:-length]
    return text
