import json
from pathlib import Path

import pytest

from nemo_desta.config import TranscriptConfig
from nemo_desta.core.prompting import Draw, PromptBuilder
from nemo_desta.errors import RowError
from nemo_desta.testing.data import tiny_row, tiny_tokenizer
from nemo_desta.types import AUDIO_SLOT

FIXTURE = Path(__file__).parents[1] / "fixtures" / "desta25_rows"


def text_of(builder: PromptBuilder, ids: list[int]) -> str:
    """Ids back to text with <A> at every slot."""
    pieces, piece = [], []
    for token in ids:
        if token == AUDIO_SLOT:
            pieces.append(builder.tokenizer.decode(piece))
            piece = []
        else:
            piece.append(token)
    return "<A>".join([*pieces, builder.tokenizer.decode(piece)])


def user(content: str, num_audios: int = 0, text: str | None = None) -> dict:
    return {
        "role": "user",
        "content": content,
        "audios": [{"audio": f"{i}.wav", "text": text} for i in range(num_audios)],
    }


@pytest.fixture(scope="module")
def chatml() -> PromptBuilder:
    return PromptBuilder(tiny_tokenizer("chatml"))


def test_layout_equals_the_original_desta25() -> None:
    from transformers import AutoTokenizer

    data = json.loads((FIXTURE / "layout.json").read_text())
    batch, size = data["batch"], data["prompt_size"]
    builder = PromptBuilder(
        AutoTokenizer.from_pretrained(FIXTURE / "tokenizer"), transcript=TranscriptConfig(enabled=True, max_tokens=100)
    )
    for number, row in enumerate(data["rows"]):
        mask = batch["context_attention_mask"][number]
        theirs = [i for i, valid in zip(batch["context_input_ids"][number], mask, strict=True) if valid]
        expected, position = [], 0
        places = batch["context_batch_start_positions"]
        for (place_row, start), transcript in zip(places, batch["batch_transcription_ids"], strict=True):
            if place_row == number:
                start -= len(mask) - len(theirs)  # they pad on the left
                expected += theirs[position:start] + [AUDIO_SLOT] + transcript
                position = start + size + len(transcript)
        example = builder.example(row)
        assert example.ids[: example.prompt_len] == expected + theirs[position:]
        labels = [i for i in batch["labels"][number] if i != -100]
        assert example.ids[example.prompt_len :][: len(labels)] == labels  # theirs are cut at 300 positions


def test_rendered_text_and_ids_are_the_templates_own(chatml: PromptBuilder) -> None:
    messages = [{"role": "system", "content": "Be brief."}, user("Hi.")]
    rendered = chatml.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chatml.prompt(messages).ids == chatml.tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_several_audios_in_several_messages_keep_their_order(chatml: PromptBuilder) -> None:
    messages = [
        user("First <|AUDIO|>, second <|AUDIO|>.", 2),
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "And <|AUDIO|>?", "audios": [{"audio": "third.wav"}]},
    ]
    prompt = chatml.prompt(messages)
    assert prompt.ids.count(AUDIO_SLOT) == 3
    assert [audio["audio"] for audio in prompt.audios] == ["0.wav", "1.wav", "third.wav"]
    assert "First <A>, second <A>." in text_of(chatml, prompt.ids)
    assert "And <A>?" in text_of(chatml, prompt.ids)


def test_literal_markers_stay_text(chatml: PromptBuilder) -> None:
    ids = chatml.prompt([user("<start_audio><|AUDIO|><end_audio>\nWhat?", 1)]).ids
    assert "<start_audio><A><end_audio>\nWhat?" in text_of(chatml, ids)


def test_tags_and_audios_must_fit(chatml: PromptBuilder) -> None:
    with pytest.raises(
        RowError, match=r"message 0 \(user\): 2 <\|AUDIO\|> tags but 3 audios; each tag needs"
    ) as caught:
        chatml.prompt([user("<|AUDIO|><|AUDIO|>", 3)])
    assert caught.value.reason == "tags"
    with pytest.raises(RowError, match="1 <|AUDIO|> tags but 0 audios"):
        chatml.prompt([user("<|AUDIO|> what?")])


def test_audio_without_a_tag_goes_before_the_last_user_text(chatml: PromptBuilder) -> None:
    messages = [{"role": "system", "content": "S", "audios": [{"audio": "a.wav"}]}, user("Early."), user("Late?", 1)]
    text = text_of(chatml, chatml.prompt(messages).ids)
    assert "user\n<A><A>Late?" in text
    assert "system\nS<" in text
    with pytest.raises(RowError, match="there is no user message"):
        chatml.prompt(messages[:1])


def test_the_tag_in_answers_history_and_transcripts_is_text() -> None:
    builder = PromptBuilder(tiny_tokenizer("chatml"), transcript=TranscriptConfig(enabled=True))
    row = tiny_row("a", "a.wav", response="I heard <|AUDIO|> once.", text="say <|AUDIO|> now")
    row["messages"].insert(1, {"role": "assistant", "content": "A <|AUDIO|> tag."})
    row["messages"].insert(1, user("Hi."))
    example = builder.example(row)
    assert example.ids.count(AUDIO_SLOT) == 1
    text = text_of(builder, example.ids)
    assert "A <|AUDIO|> tag." in text and "<A>say <|AUDIO|> now\n" in text and "I heard <|AUDIO|> once." in text


def test_private_use_characters_in_the_text_do_not_disturb(chatml: PromptBuilder) -> None:
    ids = chatml.prompt([user("\ue0000\ue000 <|AUDIO|> \ue001", 1)]).ids
    assert ids.count(AUDIO_SLOT) == 1
    assert "\ue0000\ue000 <A> \ue001" in text_of(chatml, ids)


def test_clips_that_come_separately_need_no_entries(chatml: PromptBuilder) -> None:
    prompt = chatml.prompt([user("<|AUDIO|> and <|AUDIO|>")], check_audios=False)
    assert prompt.ids.count(AUDIO_SLOT) == 2
    assert prompt.audios == []
    assert chatml.prompt([{"role": "user", "content": "<|AUDIO|>", "audios": ["a path"]}]).audios == ["a path"]


@pytest.mark.parametrize("pad", ["own", "eos", "none"])
@pytest.mark.parametrize(
    ("template", "end"), [("chatml", "<|im_end|>"), ("thinking", "<|im_end|>"), ("llama3", "<|eot_id|>")]
)
def test_target_is_the_raw_response_and_end_of_turn(template: str, end: str, pad: str) -> None:
    builder = PromptBuilder(tiny_tokenizer(template, pad))
    assert builder.tokenizer.convert_ids_to_tokens(builder.end_of_turn_id) == end
    row = tiny_row("a", "a.wav", response="  A tone.\n")
    example = builder.example(row)
    target = example.ids[example.prompt_len :]
    assert target[-1] == builder.end_of_turn_id
    assert builder.tokenizer.decode(target[:-1]) == "  A tone.\n"
    truncated = builder.example({**row, "truncated": True})
    assert truncated.ids == example.ids[:-1]


def test_end_of_turn_falls_back_to_eos_and_else_says_so() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert PromptBuilder(tokenizer).end_of_turn_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end of turn"):
        _ = PromptBuilder(tokenizer).end_of_turn_id


def test_thinking_template_strips_history_but_not_the_target() -> None:
    builder = PromptBuilder(tiny_tokenizer("thinking"))
    row = tiny_row("a", "a.wav", response="<think>\nLow pitch.\n</think>\n\nA tone.")
    row["messages"].insert(1, {"role": "assistant", "content": "<think>\nold thoughts\n</think>\n\nOld answer."})
    row["messages"].insert(1, user("Hi."))
    example = builder.example(row)
    prompt, target = text_of(builder, example.ids[: example.prompt_len]), example.ids[example.prompt_len :]
    assert "Old answer." in prompt and "old thoughts" not in prompt
    assert builder.tokenizer.decode(target) == "<think>\nLow pitch.\n</think>\n\nA tone.<|im_end|>"


def test_chat_template_kwargs_reach_the_template() -> None:
    builder = PromptBuilder(tiny_tokenizer("thinking"), chat_template_kwargs={"enable_thinking": False})
    assert builder.render([user("Hi.")]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    thinking = PromptBuilder(tiny_tokenizer("thinking"))
    assert thinking.render([user("Hi.")]).endswith("<|im_start|>assistant\n")


def test_a_template_that_refuses_or_drops_a_message_is_a_bad_row() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(RowError, match="no system role"):
        PromptBuilder(tokenizer).prompt([user("Hi.")])
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(RowError, match=r"leaves out the content of message 0 \(user\)"):
        PromptBuilder(tokenizer).prompt([user("<|AUDIO|>", 1), user("<|AUDIO|>", 1)])


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        PromptBuilder(tokenizer)


def test_transcripts_are_off_by_default_and_follow_the_slot_when_on(chatml: PromptBuilder) -> None:
    messages = [user("<|AUDIO|>\nWhat?", 1, text="one two three")]
    assert "one two" not in text_of(chatml, chatml.prompt(messages).ids)
    on = PromptBuilder(chatml.tokenizer, transcript=TranscriptConfig(enabled=True))
    assert "<A>one two three\nWhat?" in text_of(on, on.prompt(messages).ids)
    short = PromptBuilder(chatml.tokenizer, transcript=TranscriptConfig(enabled=True, max_tokens=2))
    row = {"messages": messages, "response": "Yes."}
    assert short.example(row).prompt_len == chatml.example(row).prompt_len + 2, "a training row's is cut"
    assert short.prompt(messages).ids == on.prompt(messages).ids, "a chat's is read whole"


def test_transcript_dropout_and_noise_depend_on_the_draw_alone(chatml: PromptBuilder) -> None:
    config = TranscriptConfig(enabled=True, dropout=0.5, noise=0.4)
    builder = PromptBuilder(chatml.tokenizer, transcript=config)
    messages = [user("<|AUDIO|>", 1, text="one two three four five six seven eight")]
    draws = [Draw(seed, epoch, f"row{i}") for seed in (0, 1) for epoch in (0, 1) for i in range(20)]
    texts = [text_of(builder, builder.prompt(messages, draw=draw).ids) for draw in draws]
    assert texts == [text_of(builder, builder.prompt(messages, draw=draw).ids) for draw in draws]
    plain = text_of(chatml, chatml.prompt(messages).ids)
    dropped = sum(text == plain for text in texts)
    assert 25 <= dropped <= 55  # of 80, at probability one half
    assert len(set(texts)) > 20  # noise differs from draw to draw
    without_draw = text_of(builder, builder.prompt(messages).ids)
    assert "<A>one two three four five six seven eight" in without_draw
