"""Think blocks of real chat templates, splitting and joining, and the thinking budget over scripted engines."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.think_tags import ThinkTags
from nemo_desta.core.thinking import ThinkFormat, Thought, join, split, think_format
from nemo_desta.recipes.engines.base import EngineError, Generation, Request, Sampling
from nemo_desta.recipes.think_budget import generate_with_budget
from nemo_desta.sources import resolve_source
from nemo_desta.testing.data import tiny_tokenizer

OPENED = ThinkFormat(opening="<think>\n")
WRITTEN = ThinkFormat()
MESSAGES = [{"role": "user", "content": "What is it?"}]


def prompts(template: str, **kwargs: Any) -> PromptBuilder:
    tokenizer = tiny_tokenizer("thinking" if "think" in template.lower() else "chatml")
    tokenizer.chat_template = template
    return PromptBuilder(tokenizer, chat_template_kwargs=kwargs)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening | default('') }}{% endif %}"
)


def test_format_is_found_in_the_template() -> None:
    hybrid = tiny_tokenizer("thinking")  # like Qwen3
    assert think_format(PromptBuilder(hybrid)) == WRITTEN
    assert think_format(PromptBuilder(hybrid, chat_template_kwargs={"enable_thinking": False})) is None
    assert think_format(PromptBuilder(tiny_tokenizer("chatml"))) is None
    assert think_format(PromptBuilder(tiny_tokenizer("llama3"))) is None
    thinking_only = prompts(CHATML, opening="<think>\n")
    assert think_format(thinking_only) == OPENED and OPENED.opened_by_template
    assert think_format(prompts(CHATML, opening="<thought>\n\n")).opening == "<thought>\n\n"


def test_tags_of_ones_own_are_believed() -> None:
    tags = ThinkTags("[[", "]]")
    assert think_format(prompts(CHATML), tags) == ThinkFormat(tags)
    assert think_format(prompts(CHATML, opening="[["), tags) == ThinkFormat(tags, opening="[[")
    with pytest.raises(ValueError, match="two different texts"):
        ThinkTags("<a>", "<a>")


def test_formats_of_the_demo_llms() -> None:
    folders = {name: Path(resolve_source(f"package:demo/assets/{name}")) for name in ("llm", "llm_reasoning")}
    formats = {n: think_format(PromptBuilder(AutoTokenizer.from_pretrained(f))) for n, f in folders.items()}
    assert formats == {"llm": WRITTEN, "llm_reasoning": OPENED}


@pytest.mark.parametrize(
    ("format", "text", "parts"),
    [
        (OPENED, "Rain.\n</think>\n\nIt rains.", Thought("Rain.\n", "\n\nIt rains.", True)),
        (OPENED, "Rain, so", Thought("Rain, so", None, False)),
        (OPENED, "a</think>b</think>c", Thought("a", "b</think>c", True)),
        (WRITTEN, "\n<think>\nRain.</think>It rains.", Thought("\nRain.", "It rains.", True, "\n")),
        (WRITTEN, "<think>Rain", Thought("Rain", None, False)),
        (WRITTEN, "It rains.", Thought(None, "It rains.", True)),
        (WRITTEN, "Write <think> first.", Thought(None, "Write <think> first.", True)),
        (None, "<think>a</think>b", Thought(None, "<think>a</think>b", True)),
    ],
)
def test_split(format: ThinkFormat | None, text: str, parts: Thought) -> None:
    assert split(text, format) == parts
    assert join(parts, format) == text


def test_join_undoes_split_whatever_the_text() -> None:
    rng = random.Random(0)
    pieces = ["<think>", "</think>", "\n", " ", "rain", "</thi", "nk>", "<", "ü", "[THINK]", ""]
    formats = (None, OPENED, WRITTEN, ThinkFormat(ThinkTags("[THINK]", "[/THINK]")))
    for _ in range(5000):
        text = "".join(rng.choices(pieces, k=rng.randrange(8)))
        for format in formats:
            parts = split(text, format)
            assert join(parts, format) == text
            assert split(join(parts, format), format) == parts
            assert parts.finished == (parts.answer is not None)


def test_join_refuses_what_no_answer_is() -> None:
    for parts, format in [
        (Thought(None, "x", True), OPENED),
        (Thought("x", "y", True), None),
        (Thought("x", None, True), OPENED),
        (Thought(None, None, False), WRITTEN),
    ]:
        with pytest.raises(ValueError):
            join(parts, format)


class Scripted:
    """Goes on with a text, word by word, from wherever the request's prefix ends."""

    name, revision, concurrency = "scripted", None, 8

    def __init__(self, text: str, after_cut: str = " It is rain.", prompts: Any = "yes") -> None:
        self.words = text.split(" ")
        self.after_cut = after_cut
        self.prompts = prompts
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Generation:
        self.requests.append(request)
        words = self.words
        if request.prefix:
            done = len(request.prefix.split(" "))
            words = words[done:] if " ".join(words).startswith(request.prefix) else self.after_cut.split(" ")[1:]
        kept = words[: request.sampling.max_new_tokens]
        text = (" " if request.prefix else "") + " ".join(kept)
        return Generation(text, len(kept) < len(words), None, 10, len(kept))

    async def close(self) -> None: ...


def budget(engine: Any, thinking: int, whole: int, format: ThinkFormat | None = OPENED, **more: Any) -> Generation:
    request = Request(MESSAGES, Sampling(9999, 0.6), seed=5)
    options = {"max_thinking_tokens": thinking, "max_new_tokens": whole, "format": format, **more}
    return asyncio.run(generate_with_budget(engine, request, **options))


def test_thought_within_its_budget_takes_one_pass() -> None:
    engine = Scripted("I hear rain. </think> Rain.")
    assert budget(engine, 10, 20) == Generation("I hear rain. </think> Rain.", False, None, 10, 5)
    assert [r.sampling.max_new_tokens for r in engine.requests] == [10]
    assert engine.requests[0].sampling.temperature == 0.6 and engine.requests[0].seed == 5


def test_thought_beyond_its_budget_is_ended_and_answered() -> None:
    engine = Scripted("I hear rain and more rain and still more rain </think> Rain.")
    answer = budget(engine, 4, 20, cut_sentence="Time is up.")
    assert answer == Generation("I hear rain and\n\nTime is up.\n</think> It is rain.", False, None, 20, 7)
    second = engine.requests[1]
    assert second.prefix == "I hear rain and\n\nTime is up.\n</think>" and second.sampling.max_new_tokens == 16
    assert second.seed != 5  # other random numbers than the first pass


def test_budget_without_a_sentence_only_closes() -> None:
    assert budget(Scripted("a b c d e"), 2, 9, cut_sentence="").text == "a b\n</think> It is rain."


def test_answer_cut_by_the_first_pass_goes_on_without_the_sentence() -> None:
    engine = Scripted("Rain. </think> It rains all day.")
    assert budget(engine, 4, 20).text == "Rain. </think> It rains all day."
    assert engine.requests[1].prefix == "Rain. </think> It rains"
    written = Scripted("It rains all day.")  # an LLM that left its block out
    assert budget(written, 2, 20, WRITTEN).text == "It rains all day."


def test_half_a_closing_tag_is_not_left_behind() -> None:
    assert budget(Scripted("Rain </th ink>"), 2, 9, cut_sentence="").text == "Rain\n</think> It is rain."


def test_answer_that_the_whole_budget_cuts_is_truncated() -> None:
    assert budget(Scripted("a b c d e f", after_cut=" x y z"), 2, 4, cut_sentence="").truncated
    assert budget(Scripted("a b c d"), 3, 3) == Generation("a b c", True, None, 10, 3)


def test_no_think_block_no_second_pass() -> None:
    engine = Scripted("It rains all day.")
    assert budget(engine, 1, 20, None).text == "It rains all day."
    assert [r.sampling.max_new_tokens for r in engine.requests] == [20]


def test_errors_of_either_pass_come_back() -> None:
    class Failing(Scripted):
        async def generate(self, request: Request) -> Generation:
            answer = await super().generate(request)
            return answer if not request.prefix else Generation("", False, "server says no")

    assert budget(Failing("a b c"), 2, 9) == Generation("", False, "server says no", 10, 2)


def test_engine_that_cannot_continue_is_refused() -> None:
    with pytest.raises(EngineError, match="'scripted' leaves chat templates to its server"):
        budget(Scripted("x", prompts=None), 1, 2)
    with pytest.raises(ValueError, match="max_thinking_tokens is 9, max_new_tokens 2"):
        budget(Scripted("x"), 9, 2)
