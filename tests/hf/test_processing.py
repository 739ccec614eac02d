"""The processor gives the prompts of `PromptBuilder`, whatever form a conversation and its clips have."""

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoProcessor, AutoTokenizer

from nemo_desta.core.build import build_tokenizer
from nemo_desta.core.model import SpeechLM
from nemo_desta.data.audio_io import AudioError
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.types import AUDIO_SLOT
from tests.hf.conftest import ONE, TEXT, TWO, clip


def collapsed(processor, ids, counts):
    """Ids with every clip's audio tokens as one slot again."""
    ids, counts, found = ids.tolist(), list(counts), []
    while ids:
        if ids[0] == processor.audio_token_id:
            count = counts.pop(0)
            assert set(ids[:count]) == {processor.audio_token_id}
            found, ids = [*found, AUDIO_SLOT], ids[count:]
        else:
            found.append(ids.pop(0))
    assert not counts
    return found


@pytest.mark.parametrize("conversation", [ONE, TWO, TEXT], ids=["one clip", "two clips", "no clip"])
def test_ids_are_the_prompt_builders(place, conversation):
    inputs = place.processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    lens = inputs.get("audio_lens", torch.zeros(0, dtype=torch.int64)).tolist()
    counts = [place.ours.num_audio_tokens(num) for num in lens]
    assert collapsed(place.processor, inputs["input_ids"][0], counts) == place.ours.prompts.prompt(conversation).ids
    assert ("audio" in inputs) == bool(lens)
    if lens:
        assert inputs["audio"].dtype == torch.float32 and inputs["audio"].shape == (len(lens), max(lens))


def test_audio_parts_and_tags_are_the_same(place):
    parts = [
        {
            "role": "user",
            "content": [{"type": "audio", "audio": clip(20_000)}, {"type": "text", "text": "What is it?"}],
        }
    ]
    by_parts = place.processor.apply_chat_template(parts, tokenize=True)
    by_tags = place.processor.apply_chat_template(ONE, tokenize=True)
    assert all(torch.equal(by_parts[name], by_tags[name]) for name in by_tags)


def test_the_rendered_text_and_its_clips_give_the_same_inputs(place):
    texts = place.processor.apply_chat_template([ONE, TWO, TEXT])
    assert [text.count("<|AUDIO|>") for text in texts] == [1, 2, 0]
    by_text = place.processor(texts, audio=[ONE[0]["audios"], TWO[1]["audios"], []])
    flat = place.processor(texts, audio=[*ONE[0]["audios"], *TWO[1]["audios"]])
    by_chat = place.processor.apply_chat_template([ONE, TWO, TEXT], tokenize=True)
    assert all(torch.equal(by_text[n], by_chat[n]) and torch.equal(flat[n], by_chat[n]) for n in by_chat)


def test_a_batch_is_padded_on_the_left(place):
    inputs = place.processor.apply_chat_template([ONE, TEXT], tokenize=True)
    lens = inputs["attention_mask"].sum(1)
    assert inputs["attention_mask"][1, : -lens[1]].sum() == 0 and inputs["attention_mask"][1, -lens[1] :].all()
    right = place.processor.apply_chat_template([ONE, TEXT], tokenize=True, padding_side="right")
    assert torch.equal(right["input_ids"][1, : lens[1]], inputs["input_ids"][1, -lens[1] :])
    with pytest.raises(ConfigError, match="rows differ in length"):
        place.processor.apply_chat_template([ONE, TEXT], tokenize=True, padding=False)


def test_clips_of_any_form_and_rate(place, tmp_path):
    samples = clip(24_000).clamp(-1, 1).numpy()
    soundfile.write(tmp_path / "x.wav", samples, 24_000, subtype="FLOAT")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 24_000, format="WAV", subtype="FLOAT")
    forms = [str(tmp_path / "x.wav"), buffer.getvalue(), {"array": samples, "sampling_rate": 24_000}]
    found = [place.processor("<|AUDIO|> x", audio=form) for form in forms]
    found.append(place.processor("<|AUDIO|> x", audio=samples, sampling_rate=24_000))
    assert found[0]["audio_lens"].tolist() == [16_000]
    for other in found[1:]:
        torch.testing.assert_close(other["audio"], found[0]["audio"], atol=1e-6, rtol=0)


def test_texts_and_clips_must_fit(place):
    with pytest.raises(RowError, match="1 <|AUDIO|> tags but 0 clips"):
        place.processor("<|AUDIO|> x")
    with pytest.raises(RowError, match="1 <|AUDIO|> tags but 2 audios"):
        place.processor.apply_chat_template([{**ONE[0], "audios": [clip(1_600)] * 2}], tokenize=True)
    with pytest.raises(RowError, match="tags but 0 audios"):
        place.processor.apply_chat_template([{"role": "user", "content": "<|AUDIO|> x"}], tokenize=True)
    with pytest.raises(TypeError, match="no images"):
        place.processor("x", images=np.zeros((3, 3)))


def test_clips_per_text_must_fit_each_text(place):
    texts = ["<|AUDIO|> x", "<|AUDIO|> y"]
    with pytest.raises(RowError, match=r"the texts have \[1, 1\] .* but \[2, 0\] clips"):
        place.processor(texts, audio=[[clip(1_600), clip(3_200)], []])
    lists = place.processor(texts, audio=[clip(1_600).tolist(), clip(3_200).tolist()])
    assert lists["audio_lens"].tolist() == [1_600, 3_200]
    one = place.processor(texts[0], audio=clip(1_600).tolist())
    torch.testing.assert_close(one["audio"][0], clip(1_600))


def test_integers_and_channels_are_samples_too(place):
    integers = (clip(1_600) * 32_767).to(torch.int16)
    both = torch.stack([clip(1_600)] * 2)
    for form in (integers, integers.numpy(), both, both.T.numpy()):
        found = place.processor("<|AUDIO|> x", audio=form)
        torch.testing.assert_close(found["audio"][0], clip(1_600), atol=1e-4, rtol=0)
    with pytest.raises(AudioError, match="sampling rate 0"):
        place.processor("<|AUDIO|> x", audio=clip(1_600), sampling_rate=0)


def test_without_text_or_messages_the_error_says_so(place):
    for how in ({"audio": clip(1_600)}, {"text": None, "audio": clip(1_600)}, {"text": []}):
        with pytest.raises(RowError, match="no text; a prompt is a text"):
            place.processor(**how)
    for conversation in ([], ONE[0], "Hello"):
        with pytest.raises(RowError, match="a conversation is a list of messages"):
            place.processor.apply_chat_template(conversation, tokenize=True)


def test_an_option_without_effect_is_refused(place):
    for how in ({"tokenise": True}, {"truncation": True}, {"max_length": 8}, {"processor_kwargs": {"max_length": 8}}):
        with pytest.raises(ConfigError, match="neither an argument|unknown key"):
            place.processor.apply_chat_template(ONE, **how)
    with pytest.raises(ConfigError, match="padding is 'max_length'"):
        place.processor("x", padding="max_length")
    with pytest.raises(ConfigError, match="only 'pt'"):
        place.processor("x", return_tensors="np")


def test_a_control_token_that_a_message_spells_is_text(place):
    said = [{"role": "user", "content": "a<|im_end|>b"}]
    ids = place.processor.apply_chat_template(said, tokenize=True)["input_ids"][0].tolist()
    assert ids == place.ours.prompts.prompt(said).ids
    with pytest.raises(RowError, match="spells a control token"):
        place.processor.apply_chat_template(said)


def test_a_prompt_ends_where_the_answer_begins(place):
    for how in ({"add_generation_prompt": False}, {"continue_final_message": True}):
        with pytest.raises(ConfigError, match="always ends"):
            place.processor.apply_chat_template(ONE, tokenize=True, **how)


def test_saving_and_loading_gives_the_same_inputs(place, tmp_path):
    place.processor.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert "DestaProcessor" in repr(again)
    assert again.to_dict() == place.processor.to_dict() and again.audio_token_id == place.processor.audio_token_id
    before, after = (p.apply_chat_template([ONE, TWO], tokenize=True) for p in (place.processor, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.batch_decode(after["input_ids"], skip_special_tokens=True)[0].count("<|AUDIO|>") == 0


def test_the_folders_tokenizer_has_the_tag_and_our_prompts_do_not(place):
    plain = AutoTokenizer.from_pretrained(place.folder)
    assert plain("a<|AUDIO|>b", add_special_tokens=False)["input_ids"][1] == place.processor.audio_token_id
    assert "<|AUDIO|>" not in place.ours.tokenizer.get_vocab()
    assert len(place.ours.tokenizer) == len(plain) - 1 == len(build_tokenizer(place.config.llm))
    said = {"role": "assistant", "content": "It was <|AUDIO|>."}  # text, as in the training
    chat = [*ONE, said, *TEXT]
    fresh = SpeechLM.from_config(place.config)
    assert place.ours.prompts.prompt(chat).ids == fresh.prompts.prompt(chat).ids


def test_a_folder_from_before_the_additional_keys_still_opens(place, tmp_path):
    place.model.save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    for key in ("architectures", "model_type", "audio_token", "audio_token_index"):
        del config[key]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    build_tokenizer(place.config.llm).save_pretrained(tmp_path / "old")
    model = SpeechLM.from_pretrained(tmp_path / "old", device="cpu")
    assert model.prompts.prompt(ONE).ids == place.ours.prompts.prompt(ONE).ids
