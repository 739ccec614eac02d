"""The LLMs of conf/llm: chat templates of our own with the rules of each family, and what prompts and targets become.

The rules: whether a system message is taken, folded or refused, whether turns must alternate, where a think block
begins, a default system text, a date, and the token that ends a turn.
"""

from datetime import datetime
from typing import Any

import pytest

from nemo_desta.answering.sampling import Sampling
from nemo_desta.answering.stream_parser import StreamParser
from nemo_desta.config import PromptConfig
from nemo_desta.core.build import build_prompts
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.thinking import ThinkFormat, ThoughtCheck, format_of_prompt, think_format
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.testing.data import tiny_row, tiny_tokenizer
from nemo_desta.types import AUDIO_SLOT

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n"
CLOSED = "<think>\n\n</think>\n\n"

# An answer's thought is left out of the history; enable_thinking=false closes an empty block.
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' and '</think>' in m.content %}<|im_start|>assistant\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% else %}" + TURN + "{% endif %}{% endfor %}" + ASK
)
QWEN3_HYBRID = (
    QWEN3 + "{% if enable_thinking is defined and not enable_thinking %}" + CLOSED + "{% endif %}{% endif %}"
)
QWEN3_THINKING = QWEN3 + "<think>\n{% endif %}"
# A system block with a date in every prompt; contents are stripped. 3.1 has a fixed date, 3.2 reads the clock.
LLAMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nThe day is {{ date_string }}.\n\n{{ said }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA31 = "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}" + LLAMA
LLAMA32 = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + LLAMA
# No system turn: its text goes before the first user text. Turns must alternate; the assistant is called model.
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set before = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set before = '' %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ before if loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# A system text of its own, unless the messages begin with one.
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nA small helper speaks."
    "<|im_end|>\n{% endif %}" + TURN + "{% endfor %}" + ASK + "{% endif %}"
)
# A system block with a date and a mode that a flag or the system text sets. Without tools the block has no end.
SMOLLM3 = (
    "{% set thinks = enable_thinking if enable_thinking is defined else true %}{% set said = '' %}"
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set messages = messages[1:] %}"
    "{% if '/no_think' in said %}{% set thinks = false %}{% endif %}{% endif %}"
    "<|im_start|>system\nDay: {{ strftime_now('%d %B %Y') }}\nThinks: {{ thinks }}\n"
    "{{ said.replace('/no_think', '').rstrip() or ('Think in <think> and </think>.' if thinks else 'Be of help.') }}\n"
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}" + TURN + "{% endif %}{% endfor %}"
    "" + ASK + "{% if not thinks %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
# A token per role, and the end of the text where no answer is asked for.
PHI4 = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
# Channels: the LLM names one after the generation prompt. A system message is the developer's; the last turn returns.
GPT_OSS = (
    "<|start|>system<|message|>Day: {{ strftime_now('%Y-%m-%d') }}. Effort: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% if messages[0].role == 'system' %}<|start|>developer<|message|>{{ messages[0].content }}<|end|>"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# The system block is always there; /no_think in a system or user text closes the block, else it is opened.
NEMOTRON2 = (
    "{% set ns = namespace(thinks=true, said='') %}{% for m in messages %}"
    "{% if m.role != 'assistant' and '/no_think' in m.content %}{% set ns.thinks = false %}{% endif %}"
    "{% if loop.first and m.role == 'system' %}{% set ns.said = m.content.replace('/no_think', '').strip() %}"
    "{% endif %}{% endfor %}<SPECIAL_10>System\n{{ ns.said }}\n{% for m in messages %}"
    "{% if m.role == 'user' %}<SPECIAL_11>User\n{{ m.content.replace('/no_think', '').strip() }}\n"
    "{% elif m.role == 'assistant' %}<SPECIAL_11>Assistant\n{{ m.content.split('</think>')[-1].strip() }}\n"
    "<SPECIAL_12>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<SPECIAL_11>Assistant\n{{ '<think>\n' if ns.thinks else '<think></think>' }}"
    "{% endif %}"
)
# As Llama, and an answer's thought is left out of the history. Thoughts are switched by words in the system text.
NEMOTRON1 = LLAMA31.replace("{{ m.content | trim }}", "{{ m.content.split('</think>')[-1] | trim }}")

#: Template, its special tokens, and the token that ends a turn.
FAMILIES = {
    "qwen3_hybrid": (QWEN3_HYBRID, "<|im_start|> <|im_end|>", "<|im_end|>"),
    "qwen3_thinking": (QWEN3_THINKING, "<|im_start|> <|im_end|>", "<|im_end|>"),
    "llama31": (LLAMA31, "<|start_header_id|> <|end_header_id|> <|eot_id|>", "<|eot_id|>"),
    "llama32": (LLAMA32, "<|start_header_id|> <|end_header_id|> <|eot_id|>", "<|eot_id|>"),
    "gemma3": (GEMMA3, "<start_of_turn> <end_of_turn>", "<end_of_turn>"),
    "smollm2": (SMOLLM2, "<|im_start|> <|im_end|>", "<|im_end|>"),
    "smollm3": (SMOLLM3, "<|im_start|> <|im_end|>", "<|im_end|>"),
    "phi4": (PHI4, "<|system|> <|user|> <|assistant|> <|end|>", "<|end|>"),
    "gpt_oss": (GPT_OSS, "<|start|> <|message|> <|channel|> <|end|> <|return|>", "<|return|>"),
    "nemotron1": (NEMOTRON1, "<|start_header_id|> <|end_header_id|> <|eot_id|>", "<|eot_id|>"),
    "nemotron2": (NEMOTRON2, "<SPECIAL_10> <SPECIAL_11> <SPECIAL_12>", "<SPECIAL_12>"),
}
DAY = datetime(2020, 2, 1)
ROW = tiny_row("a", "a.wav", response="A bell.")
MANY = [
    {"role": "user", "content": "One."},
    {"role": "user", "content": "Two."},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Three."},
]


def builder(family: str, system_role: str = "auto", **chat_template_kwargs: Any) -> PromptBuilder:
    template, special, _ = FAMILIES[family]
    tokenizer = tiny_tokenizer("thinking")
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    tokenizer.add_special_tokens({"additional_special_tokens": special.split()})
    return PromptBuilder(tokenizer, chat_template_kwargs=chat_template_kwargs, system_role=system_role, date=DAY)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


SYSTEM = turns(("system", "Be brief."), ("user", "Hi."))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_answer_and_the_end_of_its_turn(family: str) -> None:
    one = builder(family)
    example = one.example(ROW)
    prompt, target = example.ids[: example.prompt_len], example.ids[example.prompt_len :]
    assert one.tokenizer.decode(target) == "A bell." + FAMILIES[family][2]
    assert prompt.count(AUDIO_SLOT) == 1 and "bell" not in one.tokenizer.decode([i for i in prompt if i >= 0])
    assert one.example({**ROW, "truncated": True}).ids == example.ids[:-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generated_answer_in_the_history_is_rendered_as_the_template_renders_it(family: str) -> None:
    """What the LLM was trained to end with is where the history goes on."""
    one = builder(family)
    rendered = one.render(turns(("user", "Hi."), ("assistant", "A bell."), ("user", "More?")))
    before, after = rendered.split("A bell.")
    end = "<|end|>" if family == "gpt_oss" else FAMILIES[family][2]  # only the last turn returns
    assert after.lstrip("\n").startswith(end)
    assert before.count("Hi.") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_system_role_auto_keeps_a_system_text_that_the_template_renders(family: str) -> None:
    one = builder(family)
    assert one.render(SYSTEM).count("Be brief.") == 1
    plain = one.tokenizer.apply_chat_template(
        SYSTEM, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
    )
    if not one.reads_clock:  # nothing was folded or merged
        assert one.render(SYSTEM) == plain
    assert "Be brief." not in builder(family, "drop").render(SYSTEM)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_system_text_is_not_lost(family: str) -> None:
    messages = turns(("user", "One."), ("assistant", "Yes."), ("system", "Be brief."), ("user", "Two."))
    assert builder(family).render(messages).count("Be brief.") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_of_one_role_are_merged_only_where_turns_must_alternate(family: str) -> None:
    rendered = builder(family).render(MANY)
    assert ("One.\n\nTwo." in rendered) == (family == "gemma3")
    assert all(rendered.count(text) == 1 for text in ("One.", "Two.", "Yes.", "Three."))


def test_gemma_puts_the_system_text_before_the_user_text() -> None:
    assert builder("gemma3").render(SYSTEM) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi.<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(RowError, match="must take turns"):
        builder("gemma3", "keep").render(MANY)


@pytest.mark.parametrize(
    ("family", "kwargs", "format"),
    [
        ("qwen3_hybrid", {}, ThinkFormat()),
        ("qwen3_hybrid", {"enable_thinking": False}, None),
        ("qwen3_thinking", {}, ThinkFormat(opening="<think>\n")),
        ("llama31", {}, None),
        ("llama32", {}, None),
        ("gemma3", {}, None),
        ("smollm2", {}, None),
        ("smollm3", {}, ThinkFormat()),
        ("smollm3", {"enable_thinking": False}, None),
        ("phi4", {}, None),
        ("gpt_oss", {}, None),
        ("nemotron1", {}, ThinkFormat()),
        ("nemotron2", {}, ThinkFormat(opening="<think>\n")),
    ],
)
def test_the_think_block_is_found(family: str, kwargs: dict[str, Any], format: ThinkFormat | None) -> None:
    one = builder(family, **kwargs)
    assert think_format(one) == format
    check = ThoughtCheck(one)
    assert bool(check.opened) == (format is not None and format.opened_by_template)
    assert bool(check.closed) == ("enable_thinking" in kwargs)
    assert (check.problem(ROW) is None) == (not check.opened)
    thought = {**ROW, "response": "Hm.\n</think>\n\nA bell."}
    assert (check.problem(thought) is None) == (not check.closed)


def test_a_thought_is_supervised_with_its_tags_and_left_out_of_the_history() -> None:
    for family in ("qwen3_hybrid", "qwen3_thinking", "nemotron2"):
        one = builder(family)
        example = one.example({**ROW, "response": "Hm.\n</think>\n\nA bell."})
        close = one.tokenizer.convert_tokens_to_ids("</think>")
        assert example.ids[example.prompt_len :].count(close) == 1
        history = turns(("user", "Hi."), ("assistant", "Hm.\n</think>\n\nA bell."), ("user", "More?"))
        assert "Hm." not in one.render(history) and "A bell." in one.render(history)


def test_a_system_text_that_switches_thoughts_off_closes_the_block_of_its_prompt_only() -> None:
    one = builder("nemotron2")
    quiet = turns(("system", "/no_think Be brief."), ("user", "Hi."))
    assert one.render(quiet).endswith("<think></think>") and one.render(SYSTEM).endswith("<think>\n")
    assert think_format(one, messages=quiet) is None
    check = ThoughtCheck(one)
    row = {**ROW, "messages": [{"role": "system", "content": "/no_think"}, *ROW["messages"][1:]]}
    assert check.problem(row) is None
    assert check.problem({**row, "response": "Hm.</think>A bell."}).reason == "late thought"
    assert "/no_think" in str(check.problem(ROW))

    format = think_format(one)
    ends = one.end_ids()
    for messages, thinking in ((quiet, False), (SYSTEM, True)):
        found = format_of_prompt(one, format, one.prompt(messages).ids)
        parser = StreamParser(one, Sampling(max_new_tokens=20), format=found, end_ids=ends)
        pieces = [piece for token in one.tokenize("A bell.") for piece in parser.push(token)]
        assert {thought for _, thought in pieces} == {thinking}


@pytest.mark.parametrize(
    ("family", "written"),
    [("llama32", "01 Feb 2020"), ("smollm3", "01 February 2020"), ("gpt_oss", "2020-02-01"), ("llama31", None)],
)
def test_a_date_of_the_clock_is_the_runs(family: str, written: str | None) -> None:
    one = builder(family)
    assert one.reads_clock == (written is not None)
    assert (written or "26 Jul 2024") in one.render(SYSTEM)
    one.freeze_date(datetime(2021, 3, 4))
    assert ("2021" in one.render(SYSTEM)) == (written is not None)
    assert not any(builder(name).reads_clock for name in FAMILIES if name not in ("llama32", "smollm3", "gpt_oss"))
    assert "24 Dec 2025" in builder("llama31", date_string="24 Dec 2025").render(SYSTEM)


def test_an_empty_system_message_leaves_the_default_out_or_nothing_changes(caplog: pytest.LogCaptureFixture) -> None:
    user, empty = {"role": "user", "content": "One."}, {"role": "system", "content": ""}
    for family in FAMILIES:
        prompts = builder(family)
        with_empty, without = prompts.render([empty, user]), prompts.render([user])
        default = prompts.default_system
        if not default or prompts.keeps_default_system:
            assert with_empty == without, family
        else:
            assert default in without and with_empty == without.replace(default, ""), family
            heard = {"role": "user", "content": "<|AUDIO|>\nOne.", "audios": [{"audio": "a.wav"}]}
            trained = prompts.prompt([empty, heard]).ids
            assert prompts.tokenizer.decode([i for i in trained if i != AUDIO_SLOT]) == prompts.tokenizer.decode(
                prompts.tokenize(with_empty.replace("One.", "\nOne."))
            ), family
    found = {family for family in FAMILIES if builder(family).default_system}
    assert found == {"smollm2", "smollm3"}
    assert {family for family in FAMILIES if builder(family).keeps_default_system} == {"smollm3"}
    with caplog.at_level("INFO"):
        builder("smollm2").tell_default_system("x")
        builder("phi4").tell_default_system("x")
        own = builder("smollm2")
        own.system = ""
        own.tell_default_system("x")
    (record,) = caplog.records
    assert "'A small helper speaks.'; x leaves it out" in record.getMessage()


def test_a_default_system_text_is_written_only_without_a_system_message() -> None:
    user = SYSTEM[1:]
    assert "A small helper" in builder("smollm2").render(user)
    assert "A small helper" not in builder("smollm2").render(SYSTEM)
    for system_role in ("drop", "fold"):
        assert "A small helper" in builder("smollm2", system_role).render(SYSTEM)
    quiet = builder("smollm3", enable_thinking=False)
    assert "Be of help." in quiet.render(user) and "Be of help." not in quiet.render(SYSTEM)
    assert quiet.render(user).endswith("<|im_start|>assistant\n<think>\n\n</think>\n")


def test_an_own_system_message_is_that_of_every_conversation_without_one() -> None:
    heard = {"role": "user", "content": "<|AUDIO|>\nOne.", "audios": [{"audio": "a.wav"}]}
    for family in ("smollm2", "phi4", "gemma3"):  # one that adds a text of its own, one without, one without the role
        plain = builder(family)
        for text in ("", "Be brief."):
            own = build_prompts(plain.tokenizer, PromptConfig(system=text))
            given = [{"role": "system", "content": text}, heard]
            assert own.prompt([heard]).ids == plain.prompt(given).ids == own.prompt(given).ids
            assert own.text_prompt(SYSTEM[1:]) == plain.text_prompt([given[0], *SYSTEM[1:]])
            assert own.text_prompt(SYSTEM) == plain.text_prompt(SYSTEM)  # the conversation's own goes first
            assert own.has_own_system(text) and not own.has_own_system("Something else.")
    assert builder("phi4").has_own_system("") and not builder("smollm2").has_own_system("")
    with pytest.raises(ConfigError, match="model.prompt.system='' cannot leave out"):
        build_prompts(builder("smollm3").tokenizer, PromptConfig(system=""))


def test_gpt_oss_answers_in_the_final_channel() -> None:
    one = builder("gpt_oss")
    assert one.render(SYSTEM).endswith("<|end|><|start|>assistant<|channel|>final<|message|>")
    assert "<|start|>developer<|message|>Be brief.<|end|>" in one.render(SYSTEM)
    ids = one.example(ROW).ids
    whole = one.tokenizer.apply_chat_template(
        [*ROW["messages"], {"role": "assistant", "content": "A bell."}], tokenize=False
    )
    assert one.tokenizer.decode(ids[ids.index(AUDIO_SLOT) + 1 :]) == whole.split("<|AUDIO|>")[1], "the template's own"
    assert "Effort: low" in builder("gpt_oss", reasoning_effort="low").render(SYSTEM)
    assert one.control_token({**ROW, "response": "<|channel|>analysis<|message|>Hm."}) == "<|channel|>"
