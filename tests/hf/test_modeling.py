"""The model class equals `SpeechLM` bit for bit, in and out of batches, and saves and refuses what it should."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_desta.answering.chat import answer
from nemo_desta.core.fingerprint import IdentityMismatch
from nemo_desta.core.folder import is_trained_name
from nemo_desta.errors import ConfigError
from nemo_desta.hf import DestaConfig, DestaForConditionalGeneration
from nemo_desta.testing.models import tiny_llm
from tests.hf.conftest import GREEDY, ONE, TEXT, TWO, new_tokens, our_logits

CONVERSATIONS = pytest.mark.parametrize("conversation", [ONE, TWO, TEXT], ids=["one clip", "two clips", "no clip"])


@CONVERSATIONS
def test_logits_equal_those_of_our_own_model_bit_for_bit(place, inputs, conversation):
    with torch.no_grad():
        assert torch.equal(place.model(**inputs(conversation)).logits, our_logits(place.ours, conversation))


def test_logits_without_audio_are_the_bare_llms(place, inputs):
    llm = AutoModelForCausalLM.from_pretrained(place.config.llm.path)
    with torch.no_grad():
        assert torch.equal(place.model(**inputs(TEXT)).logits, llm(**inputs(TEXT)).logits)


@CONVERSATIONS
def test_greedy_tokens_are_those_of_our_own_chat(place, inputs, conversation):
    said = answer(place.ours, conversation, **GREEDY)
    ids = new_tokens(place.model, inputs(conversation))
    assert place.processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == said.strip()
    assert ids.unique().numel() > 1


def test_a_batch_with_padding_equals_its_rows_alone(place, inputs):
    batch = inputs(ONE, TWO, TEXT)
    assert batch["attention_mask"][2, 0] == 0
    with torch.no_grad():
        together = place.model(**batch).logits
    for row, conversation in zip(together, (ONE, TWO, TEXT), strict=True):
        with torch.no_grad():
            alone = place.model(**inputs(conversation)).logits[0]
        torch.testing.assert_close(row[-len(alone) :], alone, atol=1e-4, rtol=1e-4)
    for ids, conversation in zip(new_tokens(place.model, batch), (ONE, TWO, TEXT), strict=True):
        alone = new_tokens(place.model, inputs(conversation))[0]
        assert ids[: len(alone)].tolist() == alone.tolist()


def test_padding_on_the_right_gives_the_same_logits(place, inputs):
    batch = inputs(ONE, TWO, padding_side="right")
    with torch.no_grad():
        together, alone = place.model(**batch).logits, place.model(**inputs(TWO)).logits[0]
    assert batch["attention_mask"][0, -1] == 0 or batch["attention_mask"][1, -1] == 0
    torch.testing.assert_close(together[1, : len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_embeddings_give_what_ids_and_audio_give(place, inputs):
    batch = inputs(TWO)
    with torch.no_grad():
        embeds = place.model.embed_audio(batch["input_ids"], batch["audio"], batch["audio_lens"])
        by_embeds = place.model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
        assert torch.equal(by_embeds, place.model(**batch).logits)
    new = place.model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **GREEDY)
    assert torch.equal(new, new_tokens(place.model, batch))


def test_only_the_projector_gets_gradients_and_recomputation_changes_none(fresh, labelled):
    batch, found, losses = labelled(ONE, TWO), [], []
    for _ in range(2):
        fresh.train()
        fresh.zero_grad()
        losses.append(fresh(**batch).loss)
        losses[-1].backward()
        found.append({name: p.grad.clone() for name, p in fresh.named_parameters() if p.grad is not None})
        fresh.gradient_checkpointing_enable()
    assert fresh.is_gradient_checkpointing and fresh.llm.training and torch.equal(*losses)
    assert set(found[0]) == {n for n, p in fresh.named_parameters() if n.startswith("perception.projector.")}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)
    fresh.gradient_checkpointing_disable()
    assert not fresh.llm.training and fresh.perception.projector.training
    assert not any(module.training for module in fresh.perception.encoders.children())


def test_saving_and_loading_keeps_weights_logits_and_tied_ones(place, inputs, tmp_path):
    place.model.save_pretrained(tmp_path / "again")
    assert {path.suffix for path in (tmp_path / "again").glob("*.safetensors")} == {".safetensors"}
    assert (tmp_path / "again" / "config.json").read_text() == (place.folder / "config.json").read_text()
    for auto in (AutoModelForCausalLM, DestaForConditionalGeneration):
        again = auto.from_pretrained(tmp_path / "again")
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, place.model.state_dict()[name]), name
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.equal(again(**inputs(TWO)).logits, place.model(**inputs(TWO)).logits)
    saved = sum(tensor.numel() for name, tensor in again.state_dict().items() if is_trained_name(name))
    assert (tmp_path / "again" / "projector.safetensors").stat().st_size < 8 * saved + 10_000


def test_the_vocabulary_embeddings_and_head_stay(place):
    for change in ("resize_token_embeddings", "set_input_embeddings", "set_output_embeddings"):
        with pytest.raises(ConfigError, match="keeps its vocabulary"):
            getattr(place.model, change)(torch.nn.Embedding(500, 32))


def test_another_llm_is_refused_by_name(place, tmp_path):
    tiny_llm(tmp_path / "other", intermediate_size=48)
    with pytest.raises(IdentityMismatch, match="llm"):
        DestaForConditionalGeneration.from_pretrained(place.folder, llm=str(tmp_path / "other"))


def test_an_unknown_argument_is_refused(place):
    with pytest.raises(TypeError, match="no argument 'encoder'"):
        DestaForConditionalGeneration.from_pretrained(place.folder, encoder="x")


def test_ids_and_audio_must_fit(place, inputs):
    one, two = inputs(ONE), inputs(TWO)
    with pytest.raises(ValueError, match="audio tokens in input_ids but no audio"):
        place.model(input_ids=one["input_ids"])
    with pytest.raises(ValueError, match="but the clips have"):
        place.model(input_ids=one["input_ids"], audio=two["audio"], audio_lens=two["audio_lens"])
    ids = one["input_ids"].clone()
    first = int((ids[0] == place.model.config.audio_token_index).nonzero()[0])
    ids[0, [first, first - 2]] = ids[0, [first - 2, first]]
    with pytest.raises(ValueError, match="side by side"):
        place.model(input_ids=ids, audio=one["audio"], audio_lens=one["audio_lens"])
    with pytest.raises(ValueError, match="1 clips in audio but 0 in audio_lens"):
        place.model(input_ids=one["input_ids"], audio=one["audio"])


def test_the_config_is_the_folders(place, tmp_path):
    config = AutoConfig.from_pretrained(place.folder)
    assert isinstance(config, DestaConfig) and config.architectures == ["DestaForConditionalGeneration"]
    assert config.get_text_config().hidden_size == 32
    assert config.audio_token == "<|AUDIO|>" and config.audio_token_index >= config.text_config.vocab_size
    assert "text_config" not in config.to_dict() and DestaConfig().text_config is None
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model == config.model
