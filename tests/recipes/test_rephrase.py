"""Self-rephrasing over scripted engines: what the rewriter is shown, what becomes of its answer, every way to fail."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.thinking import ThinkFormat, think_format
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import Generation, Request
from nemo_desta.recipes.gates.leak import LeakCheck
from nemo_desta.recipes.rephrase import Rephrased, Rephraser
from nemo_desta.recipes.rephrase_text import INSTRUCTIONS, Example, RephraseInstructions
from nemo_desta.testing.data import tiny_tokenizer

READ = "The description says it rains.\n</think>\n\nAccording to the text, it rains."
HEARD = "I hear rain.\n</think>\n\nBy the sound of it, it rains."
REPLY = "<reasoning>\nI hear rain.\n</reasoning>\n\nBy the sound of it, it rains."
OWN_THOUGHT = "I change the verbs.\n</think>\n\n"


class Scripted:
    """Answers by a function of the request; ``opens``: the template opens the think block."""

    name, revision, concurrency = "scripted", None, 8

    def __init__(self, answer: Callable[[Request], str | Generation] | str, template: str = "opens") -> None:
        tokenizer = tiny_tokenizer("chatml" if template == "instruct" else "thinking")
        if template == "opens":
            end = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
            tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}" + end
        self.prompts = PromptBuilder(tokenizer)
        self.answer = answer
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Generation:
        self.requests.append(request)
        said = self.answer if isinstance(self.answer, str) else self.answer(request)
        return said if isinstance(said, Generation) else Generation(said, False, None, 100, 20)

    async def close(self) -> None: ...


def rephrase(engine: Any, response: str, *, truncated: bool = False, **options: Any) -> Rephrased:
    return asyncio.run(Rephraser(engine, **options)(response, truncated=truncated, seed=3))


def tagged(text: str) -> str:
    return f"{OWN_THOUGHT}<answer>\n{text}\n</answer>"


def test_thought_and_answer_are_rewritten_and_the_rewriters_thought_is_gone() -> None:
    engine = Scripted(tagged(REPLY))
    assert rephrase(engine, READ) == Rephrased(HEARD, False, None, 100, 20)
    system, user = engine.requests[0].messages
    # Think tags under neutral names, the opening one added; nothing but the first answer.
    assert "<reasoning>\nThe description says it rains.\n</reasoning>\n\nAccording to the text" in user["content"]
    assert "think>" not in user["content"] + system["content"]
    assert system["content"].count("--- Example") == 2 * len(INSTRUCTIONS.examples) >= 8
    assert "{" not in system["content"].replace('{"instrument"', "")
    sampling = engine.requests[0].sampling
    assert (sampling.max_new_tokens, sampling.temperature) == (1536, None) and engine.requests[0].seed == 3


def test_opening_tag_that_the_llm_writes_itself_stays() -> None:
    engine = Scripted("<think>\n" + tagged(REPLY), template="writes")
    assert rephrase(engine, "<think>\n" + READ).text == "<think>\n" + HEARD
    assert (
        rephrase(Scripted("<answer>It rains.</answer>", template="writes"), "The text says: rain.").text == "It rains."
    )


def test_unfinished_thought_is_closed_for_the_rewriter_and_stays_unfinished() -> None:
    engine = Scripted(tagged("<reasoning>\nI hear rain, and then\n</reasoning>"))
    done = rephrase(engine, "The text lists rain, and then ", truncated=True)
    assert done.text == "I hear rain, and then " and done.truncated and done.error is None
    assert "<reasoning>\nThe text lists rain, and then\n</reasoning>\n" in engine.requests[0].messages[1]["content"]
    added = Scripted(tagged("<reasoning>\nI hear rain, and then\n</reasoning>\n\nIt rains."))
    assert rephrase(added, "The text lists rain, and then", truncated=True).text == "I hear rain, and then"
    unclosed = Scripted(tagged("<reasoning>\nI hear rain, and"))
    assert rephrase(unclosed, "The text lists rain, and", truncated=True).text == "I hear rain, and"


def test_cut_answer_behind_a_finished_thought_stays_cut() -> None:
    done = rephrase(Scripted(tagged(REPLY[:-10])), READ[:-10], truncated=True)
    assert done == Rephrased(HEARD[:-10], True, None, 100, 20)


def test_white_space_is_that_of_the_first_answer() -> None:
    first = "  Read.\n\n</think>\nThe text says rain.\n"
    assert rephrase(Scripted(tagged(REPLY)), first).text == (
        "  I hear rain.\n\n</think>\nBy the sound of it, it rains.\n"
    )


def test_instruct_llm_rewrites_answers_only() -> None:
    engine = Scripted("Sure:\n<answer>\nIt rains.\n</answer>", template="instruct")
    assert rephrase(engine, "The text says it rains.").text == "It rains."
    system, user = engine.requests[0].messages
    assert "reasoning>" not in system["content"] + user["content"]
    assert engine.requests[0].sampling.max_new_tokens == 4096 and len(engine.requests) == 1


def test_text_behind_the_last_opening_tag_counts() -> None:
    reply = f"{OWN_THOUGHT}I put it in <answer> tags.\n<answer>\n{REPLY}"
    assert rephrase(Scripted(reply), READ).text == HEARD


def test_neutral_tags_are_ones_that_the_answer_does_not_hold() -> None:
    first = "The text shows <reasoning>x</reasoning>.\n</think>\n\nIt holds <reasoning> and <pondering/>."

    def answer(request: Request) -> str:
        sent = request.messages[1]["content"]
        assert "<inner_voice>\nThe text shows <reasoning>x</reasoning>.\n</inner_voice>" in sent
        return tagged(sent.partition("edit.\n\n")[2].partition("\n\n(End")[0].replace("The text shows", "I hear"))

    assert rephrase(Scripted(answer), first).text == first.replace("The text shows", "I hear")
    first = "".join(f"<{name}>" for name in INSTRUCTIONS.neutral_tags) + "\n</think>\n\nRain."
    engine = Scripted(tagged("<reasoning_2>\n<reasoning><pondering><inner_voice>\n</reasoning_2>\n\nRain."))
    assert rephrase(engine, first).text == first


def test_answer_tags_in_the_first_answer_survive() -> None:
    first = "The text says 2.\n</think>\n\n<answer>2</answer>"

    def answer(request: Request) -> str:
        assert "between <rewritten> and </rewritten>" in request.messages[1]["content"]
        return f"{OWN_THOUGHT}<rewritten>\n<reasoning>\nI hear 2.\n</reasoning>\n\n<answer>2</answer>\n</rewritten>"

    assert rephrase(Scripted(answer), first).text == "I hear 2.\n</think>\n\n<answer>2</answer>"


def test_think_tags_that_an_answer_talks_about_come_back() -> None:
    first = "Read.\n</think>\n\nUse <think> and </think> tags, the text says."

    def answer(request: Request) -> str:
        assert "think>" not in request.messages[1]["content"]
        return tagged("<reasoning>\nHeard.\n</reasoning>\n\nUse <reasoning> and </reasoning> tags, I hear.")

    assert rephrase(Scripted(answer), first).text == "Heard.\n</think>\n\nUse <think> and </think> tags, I hear."


def test_marks_in_an_answer_are_text() -> None:
    engine = Scripted("<answer>Fill in {text} and {examples}.</answer>", template="instruct")
    assert rephrase(engine, "The text: fill in {text} and {examples}.").text == "Fill in {text} and {examples}."
    assert "fill in {text} and {examples}." in engine.requests[0].messages[1]["content"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (f"{OWN_THOUGHT}{REPLY}", "no answer tags"),
        ("thinking, thinking", "no answer tags"),
        (tagged("By the sound of it, it rains."), "think block lost"),
        (tagged("<reasoning>\n</reasoning>\n\nIt rains."), "think block lost"),
        (tagged("<reasoning>\nI hear rain.\n</reasoning>"), "answer lost"),
        (tagged(REPLY + "</reasoning>"), "think block changed"),
        (tagged("<reasoning>\nI hear </think> rain.\n</reasoning>\n\nIt rains."), "think block changed"),
        (tagged(REPLY + " And it rains." * 30), "rewriting too long"),
        (tagged(REPLY.replace("rain.", "rain, rain." * 30)), "rewriting too long"),
        (Generation(f"{OWN_THOUGHT}<answer>\n<reas", True, None, 7, 9), "rewriter cut"),
        (Generation("", False, "HTTP 500", 7, 0), "LLM error"),
    ],
)
def test_failures_are_named(reply: str | Generation, reason: str) -> None:
    done = rephrase(Scripted(lambda request: reply), READ)
    assert done.text == "" and done.error is not None and done.error.reason == reason and done.error.detail
    assert done.prompt_tokens >= 7


def test_collapsed_rewriting_is_too_short() -> None:
    first = "The text lists many sounds. " * 20 + "\n</think>\n\nMany sounds."
    assert rephrase(Scripted(tagged(REPLY)), first).error.reason == "rewriting too short"
    assert rephrase(Scripted(tagged(REPLY)), first, length_ratio=(0.0, 2.0)).error is None
    assert rephrase(Scripted("x"), " \n").error.reason == "nothing to rewrite"


def test_thinking_of_the_rewriter_is_held_to_its_budget() -> None:
    def answer(request: Request) -> Generation:
        if not request.prefix:
            return Generation("Which words should I change? Perhaps", True, None, 100, 8)
        assert request.prefix.endswith("Perhaps\n\nEnough.\n</think>") and request.sampling.max_new_tokens == 92
        return Generation(f"\n\n<answer>\n{REPLY}\n</answer>", False, None, 120, 30)

    engine = Scripted(answer)
    done = rephrase(engine, READ, max_thinking_tokens=8, max_new_tokens=100, cut_sentence="Enough.")
    assert done == Rephrased(HEARD, False, None, 220, 38) and len(engine.requests) == 2


def test_engine_that_renders_nothing_rewrites_in_one_pass() -> None:
    engine = Scripted(f"<think>{tagged(REPLY)}")
    engine.prompts = None
    done = rephrase(engine, "<think>\n" + READ, format=ThinkFormat())
    assert done.text == "<think>\n" + HEARD and engine.requests[0].sampling.max_new_tokens == 4096


def test_instructions_of_ones_own() -> None:
    own = RephraseInstructions.from_config(
        {"system": "", "request": "Rewrite.\n\n{text}", "thoughts": "", "neutral_tags": "notes", "answer_tags": None}
        | {"examples": []}
    )
    engine = Scripted(f"{OWN_THOUGHT}<notes>\nI hear rain.\n</notes>\n\nIt rains.")
    assert rephrase(engine, READ, instructions=own).text == "I hear rain.\n</think>\n\nIt rains."
    shown = "<notes>\nThe description says it rains.\n</notes>\n\nAccording to the text, it rains."
    assert engine.requests[0].messages == [{"role": "user", "content": f"Rewrite.\n\n{shown}"}]
    more = RephraseInstructions.from_config({"examples": [{"thought": "a", "answer": "b"} | HEARD_PAIR]})
    assert more.examples == (Example("a", "b", **HEARD_PAIR),) and more.system == INSTRUCTIONS.system


HEARD_PAIR = {"heard_thought": "c", "heard_answer": "d"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sytem": "x"}, "Did you mean 'system'"),
        ({"request": "Rewrite it."}, "hold {text} once"),
        ({"system": "Rewrite.", "thoughts": ""}, "holds {examples}"),
        ({"system": "{examples}"}, "holds {thoughts}"),
        ({"neutral_tags": ["<a>"]}, "'<a>' is no tag name"),
        ({"neutral_tags": []}, "neutral_tags is empty"),
        ({"answer_tags": []}, "hold {answer_open} if there are answer_tags"),
    ],
)
def test_instructions_that_cannot_work_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("{", r"\{").replace("}", r"\}")):
        RephraseInstructions.from_config(config)


def test_worked_examples_leak_before_and_not_after() -> None:
    check = LeakCheck()
    for example in INSTRUCTIONS.examples:
        assert check.find(example.thought) and (
            check.find(example.answer) or not example.answer or "{" in example.answer
        )
        assert not check.find(example.heard_thought) and not check.find(example.heard_answer)
        assert 0.7 < len(example.heard_thought) / len(example.thought) < 1.3
        assert bool(example.answer) == bool(example.heard_answer)


def test_format_is_found_when_none_is_given() -> None:
    engine = Scripted("x")
    assert Rephraser(engine).format == think_format(engine.prompts) == ThinkFormat(opening="<think>\n")
    with pytest.raises(ValueError, match="length_ratio"):
        Rephraser(engine, length_ratio=(2.0, 1.0))
