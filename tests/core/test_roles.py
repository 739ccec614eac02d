"""Chat templates that refuse or lose messages: system texts are folded, turns merged, and nothing gets lost unsaid."""

import logging

import pytest

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.testing.data import tiny_row, tiny_tokenizer

_GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen2.5: a message of another role is left out.
_KNOWN_ONLY = (
    "{% for m in messages %}{% if m.role in ['user', 'assistant', 'tool'] %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def builder(template: str | None, **settings: str) -> PromptBuilder:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = template or tokenizer.chat_template
    return PromptBuilder(tokenizer, **settings)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize("template", [_GEMMA, _KNOWN_ONLY])
def test_a_system_text_that_the_template_refuses_or_loses_goes_before_the_user_text(
    template: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = tiny_row("a", "a.wav")
    one = builder(template)
    with caplog.at_level(logging.WARNING):
        rendered = [one.tokenizer.decode(one.example(row).ids[:20]), one.render(row["messages"])]
    assert "<|im_start|>user\nFocus on the audio.\n\n<|AUDIO|>\nWhat can be heard?<|im_end|>" in rendered[1]
    assert "system\n" not in rendered[0]
    assert caplog.text.count("system texts are put before the next user text") == 1, "said once"


def test_a_template_that_takes_system_messages_gets_them_as_they_are() -> None:
    messages = turns(("system", "Be brief."), ("user", "Hi."))
    own = builder(None).tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert builder(None).render(messages) == own
    assert "user\nBe brief.\n\nHi." in builder(None, system_role="fold").render(messages)


def test_turns_of_one_role_are_merged_where_the_template_wants_them_to_alternate() -> None:
    messages = turns(("user", "One."), ("user", "Two."), ("assistant", "Yes."), ("user", "Three."))
    assert "user\nOne.\n\nTwo.<|im_end|>\n<|im_start|>assistant\nYes." in builder(_GEMMA).render(messages)
    assert "user\nOne.<|im_end|>" in builder(None).render(messages)


def test_audios_keep_their_order_when_messages_are_folded_and_merged() -> None:
    messages = [
        {"role": "system", "content": "Listen: <|AUDIO|>", "audios": [{"audio": "0.wav"}]},
        {"role": "user", "content": "<|AUDIO|> and", "audios": [{"audio": "1.wav"}]},
        {"role": "user", "content": "<|AUDIO|>?", "audios": [{"audio": "2.wav"}]},
    ]
    assert [audio["audio"] for audio in builder(_GEMMA).prompt(messages).audios] == ["0.wav", "1.wav", "2.wav"]


def test_keep_and_drop_do_what_they_say() -> None:
    messages = turns(("system", "Be brief."), ("user", "Hi."))
    with pytest.raises(RowError, match="System role not supported"):
        builder(_GEMMA, system_role="keep").render(messages)
    with pytest.raises(RowError, match=r"leaves out the content of message 0 \(system\)"):
        builder(_KNOWN_ONLY, system_role="keep").render(messages)
    for template in (None, _GEMMA, _KNOWN_ONLY):
        assert "Be brief." not in builder(template, system_role="drop").render(messages)
    with pytest.raises(ConfigError, match="unknown prompt.system_role 'flod'. Did you mean 'fold'"):
        builder(None, system_role="flod")


def test_a_message_of_a_role_that_the_template_leaves_out_is_a_bad_row() -> None:
    row = tiny_row("a", None)
    row["messages"][0]["role"], row["messages"][1]["role"] = "user", "human"
    with pytest.raises(RowError, match=r"leaves out the content of message 1 \(human\)") as caught:
        builder(_KNOWN_ONLY).example(row)
    assert caught.value.reason == "template"
    with pytest.raises(RowError, match="human"):  # the second time the answer is remembered
        builder(_KNOWN_ONLY).example(row)


def test_the_setting_is_stored_with_the_model_and_read_back(tmp_path) -> None:
    from nemo_desta.config import ModelConfig, parse, to_dict
    from nemo_desta.core.build import build_prompts

    config = parse(ModelConfig, {"llm": {"path": "x"}, "prompt": {"system_role": "drop"}})
    again = parse(ModelConfig, to_dict(config))
    prompts = build_prompts(tiny_tokenizer("chatml"), again.prompt)
    assert "Be brief." not in prompts.render(turns(("system", "Be brief."), ("user", "Hi.")))
