"""`generate` with audio: caches, beams, samples, answers that are continued, and what it refuses."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModel, AutoProcessor, TextStreamer

from nemo_desta.answering.chat import answer
from tests.hf.conftest import GREEDY, ONE, TEXT, TWO, new_tokens, write_model


def test_a_cache_changes_no_token(place, inputs):
    batch = inputs(ONE, TWO)
    cached = new_tokens(place.model, batch)
    assert torch.equal(cached, new_tokens(place.model, batch, use_cache=False))
    assert torch.equal(cached, new_tokens(place.model, batch, cache_implementation="static"))


def test_a_cache_of_windows_changes_no_token(tmp_path):
    folder, _ = write_model(tmp_path, kind="gemma3")  # one layer sees 8 positions
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    batch = processor.apply_chat_template([ONE, TWO], tokenize=True)
    cached = new_tokens(model, batch)
    assert torch.equal(cached, new_tokens(model, batch, use_cache=False))
    assert torch.equal(cached, new_tokens(model, batch, cache_implementation="static"))


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.6"), reason="older ones cannot do it without a prompt of ids"
)
def test_prompt_lookup_changes_no_token(place, inputs):
    assert torch.equal(
        new_tokens(place.model, inputs(TWO), max_new_tokens=24, prompt_lookup_num_tokens=3),
        new_tokens(place.model, inputs(TWO), max_new_tokens=24),
    )


def test_beam_search_keeps_each_row_with_its_own_clips(place, inputs):
    together = new_tokens(place.model, inputs(TWO, ONE), num_beams=3, num_return_sequences=2)
    for i, conversation in enumerate((TWO, ONE)):
        alone = new_tokens(place.model, inputs(conversation), num_beams=3, num_return_sequences=2)
        assert together[2 * i : 2 * i + 2, : alone.shape[1]].tolist() == alone.tolist()


def test_sampling_follows_its_seed_and_returns_scores(place, inputs):
    how = {"do_sample": True, "temperature": 2.0, "return_dict_in_generate": True, "output_scores": True}
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(place.model.generate(**inputs(ONE), max_new_tokens=6, **how))
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.equal(found[0].sequences[:, : inputs(ONE)["input_ids"].shape[1]], inputs(ONE)["input_ids"])
    assert 1 <= len(found[0].scores) <= 6


def test_a_penalty_sees_new_tokens_alone_as_in_our_own_chat(place, inputs):
    said = answer(place.ours, ONE, repetition_penalty=1.7, **GREEDY)
    ids = new_tokens(place.model, inputs(ONE), repetition_penalty=1.7)
    assert place.processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == said.strip()


def test_beams_without_a_cache_are_the_same(place, inputs):
    batch = inputs(ONE, TWO)
    assert torch.equal(
        new_tokens(place.model, batch, num_beams=3), new_tokens(place.model, batch, num_beams=3, use_cache=False)
    )


def test_several_samples_of_a_prompt_stand_side_by_side(place, inputs):
    batch = inputs(ONE, TWO)
    found = place.model.generate(**batch, do_sample=True, temperature=5.0, num_return_sequences=3, max_new_tokens=6)
    prompt = batch["input_ids"].repeat_interleave(3, 0)
    assert torch.equal(found[:, : prompt.shape[1]], prompt)
    assert len({tuple(row) for row in found[:3].tolist()}) > 1


def test_hidden_states_attentions_and_logits_are_returned(place, inputs):
    model = AutoModel.from_pretrained(place.folder, attn_implementation="eager")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    batch, layers = inputs(TWO), model.config.get_text_config().num_hidden_layers
    L = batch["input_ids"].shape[1]
    with torch.no_grad():
        out = model(**batch, **wanted)
    assert [tuple(h.shape) for h in out.hidden_states] == [(1, L, 32)] * (layers + 1)
    assert [tuple(a.shape) for a in out.attentions] == [(1, 4, L, L)] * layers
    said = model.generate(**batch, **GREEDY, **wanted, output_logits=True, return_dict_in_generate=True)
    assert len(said.hidden_states) == len(said.attentions) == len(said.logits) == said.sequences.shape[1] - L
    torch.testing.assert_close(said.logits[0], out.logits[:, -1].float(), atol=1e-4, rtol=1e-4)


def test_an_answer_continues_from_its_cache_with_or_without_its_clips(place, inputs):
    batch = inputs(ONE, TWO)
    whole = place.model.generate(**batch, do_sample=False, min_new_tokens=12, max_new_tokens=12)
    steps = {"do_sample": False, "min_new_tokens": 6, "max_new_tokens": 6}
    for given in ({"audio": batch["audio"], "audio_lens": batch["audio_lens"]}, {}):
        first = place.model.generate(**batch, **steps, return_dict_in_generate=True)
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, 6), value=1)
        again = {"input_ids": first.sequences, "past_key_values": first.past_key_values, "attention_mask": mask}
        assert torch.equal(place.model.generate(**again, **given, **steps), whole)


def test_one_token_after_a_cache_gives_the_logits_of_the_whole(place, inputs):
    batch = inputs(TWO)
    with torch.no_grad():
        out = place.model(**batch, use_cache=True)
        following = out.logits[:, -1:].argmax(-1)
        step = place.model(input_ids=following, past_key_values=out.past_key_values).logits
        ids = torch.cat([batch["input_ids"], following], 1)
        whole = place.model(input_ids=ids, audio=batch["audio"], audio_lens=batch["audio_lens"]).logits
    torch.testing.assert_close(step[:, -1], whole[:, -1], atol=1e-4, rtol=1e-4)


def test_max_length_counts_the_prompt_and_a_stop_string_ends(place, inputs):
    batch = inputs(ONE)
    length = batch["input_ids"].shape[1] + 3
    assert place.model.generate(**batch, do_sample=False, max_length=length).shape[1] == length
    said = [place.processor.decode(token) for token in new_tokens(place.model, batch, max_new_tokens=40)[0]]
    word = next(text for text in said if text.isascii() and text.strip())
    stops = {"stop_strings": [word], "tokenizer": place.processor.tokenizer}
    assert new_tokens(place.model, batch, max_new_tokens=40, **stops).shape[1] == said.index(word) + 1


def test_a_streamer_gets_the_answer_as_text(place, inputs, capsys):
    place.model.generate(**inputs(ONE), **GREEDY, streamer=TextStreamer(place.processor.tokenizer))
    said = place.processor.tokenizer.decode(new_tokens(place.model, inputs(ONE))[0])
    assert capsys.readouterr().out.strip() == said.strip()


def test_what_would_be_answered_wrongly_is_refused(place, inputs):
    with pytest.raises(ValueError, match="pad on the left"):
        place.model.generate(**inputs(ONE, TEXT, padding_side="right"), **GREEDY)
    with pytest.raises(ValueError, match="assistant_model"):
        place.model.generate(**inputs(ONE), **GREEDY, assistant_model=place.model.llm)
    with pytest.raises(ValueError, match="max_new_token"):
        place.model.generate(**inputs(ONE), max_new_token=4)
    with pytest.raises(ValueError, match="audio_length"):
        place.model.generate(**inputs(TEXT), audio_length=4)
