"""The model class keeps the promises of transformers' common tests, and equals `SpeechLM` bit for bit."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline
from transformers.pipelines import get_supported_tasks

from nemo_desta.answering.audio_embeddings import embed_prompts
from nemo_desta.answering.chat import answer
from nemo_desta.answering.engine import prepare
from nemo_desta.answering.sampling import Sampling
from nemo_desta.core.fingerprint import IdentityMismatch
from nemo_desta.core.folder import is_trained_name
from nemo_desta.errors import ConfigError
from nemo_desta.hf import DestaConfig, DestaForConditionalGeneration
from nemo_desta.sharing.export import export_model
from nemo_desta.testing.models import tiny_llm
from tests.hf.conftest import ONE, TEXT, TWO

GREEDY = {"do_sample": False, "max_new_tokens": 8}


def new_tokens(model, inputs, **how):
    return model.generate(**inputs, **{**GREEDY, **how})[:, inputs["input_ids"].shape[1] :]


@pytest.fixture
def ours(place):
    """(conversation) -> logits of SpeechLM."""

    def logits(conversation):
        chat = prepare(place.ours, conversation, Sampling())
        with torch.no_grad():
            spliced = embed_prompts(place.ours, [(chat.ids, chat.clips)])
            return place.ours(spliced.inputs_embeds, spliced.attention_mask.long())["logits"]

    return logits


@pytest.mark.parametrize("conversation", [ONE, TWO, TEXT], ids=["one clip", "two clips", "no clip"])
def test_logits_equal_those_of_our_own_model_bit_for_bit(place, inputs, ours, conversation):
    with torch.no_grad():
        assert torch.equal(place.model(**inputs(conversation)).logits, ours(conversation))


def test_logits_without_audio_are_the_bare_llms(place, inputs):
    llm = AutoModelForCausalLM.from_pretrained(place.config.llm.path)
    with torch.no_grad():
        assert torch.equal(place.model(**inputs(TEXT)).logits, llm(**inputs(TEXT)).logits)


@pytest.mark.parametrize("conversation", [ONE, TWO, TEXT], ids=["one clip", "two clips", "no clip"])
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


def test_a_cache_changes_no_token(place, inputs):
    batch = inputs(ONE, TWO)
    cached = new_tokens(place.model, batch)
    assert torch.equal(cached, new_tokens(place.model, batch, use_cache=False))
    assert torch.equal(cached, new_tokens(place.model, batch, cache_implementation="static"))


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


def test_embeddings_give_what_ids_and_audio_give(place, inputs):
    batch = inputs(TWO)
    with torch.no_grad():
        embeds = place.model.embed_audio(batch["input_ids"], batch["audio"], batch["audio_lens"])
        by_embeds = place.model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
        assert torch.equal(by_embeds, place.model(**batch).logits)
    new = place.model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **GREEDY)
    assert torch.equal(new, new_tokens(place.model, batch))


def test_a_penalty_sees_new_tokens_alone_as_in_our_own_chat(place, inputs):
    said = answer(place.ours, ONE, repetition_penalty=1.7, **GREEDY)
    ids = new_tokens(place.model, inputs(ONE), repetition_penalty=1.7)
    assert place.processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == said.strip()


def test_only_the_projector_gets_gradients_and_recomputation_changes_none(fresh, inputs):
    batch = inputs(ONE, TWO)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == fresh.config.audio_token_index, -100)
    found = []
    for _ in range(2):
        fresh.train()
        fresh.zero_grad()
        fresh(**batch, labels=labels).loss.backward()
        found.append({name: p.grad.clone() for name, p in fresh.named_parameters() if p.grad is not None})
        fresh.gradient_checkpointing_enable()
    assert fresh.is_gradient_checkpointing and fresh.llm.training
    assert set(found[0]) == {n for n, p in fresh.named_parameters() if n.startswith("perception.projector.")}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)
    fresh.gradient_checkpointing_disable()
    assert not fresh.llm.training and fresh.perception.projector.training


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


def test_resizing_the_vocabulary_is_refused(place):
    with pytest.raises(ConfigError, match="keeps its vocabulary"):
        place.model.resize_token_embeddings(500)


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


def test_dtype_and_device_map_reach_the_llm(place, inputs):
    model = DestaForConditionalGeneration.from_pretrained(place.folder, dtype=torch.bfloat16, device_map="cpu")
    assert model.dtype == torch.bfloat16 and model.device.type == "cpu"
    batch = inputs(ONE).to(torch.bfloat16)
    assert batch["audio"].dtype == torch.float32
    assert model(**batch).logits.dtype == torch.bfloat16


def test_the_config_is_the_folders(place, tmp_path):
    config = AutoConfig.from_pretrained(place.folder)
    assert isinstance(config, DestaConfig) and config.architectures == ["DestaForConditionalGeneration"]
    assert config.get_text_config().hidden_size == 32
    assert config.audio_token == "<|AUDIO|>" and config.audio_token_index >= config.text_config.vocab_size
    assert "text_config" not in config.to_dict() and DestaConfig().text_config is None
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model == config.model


def test_an_export_opens_with_the_places_of_its_parts(place, inputs, tmp_path):
    folder, parts = export_model(place.folder, tmp_path / "export"), place.path / "parts"
    encoders = {"whisper": str(parts / "whisper"), "beats": str(parts / "beats.pt")}
    with pytest.raises(FileNotFoundError, match="Say where it is"):
        AutoModel.from_pretrained(folder)
    opened = AutoModel.from_pretrained(folder, llm=str(parts / "llm"), encoders=encoders)
    assert torch.equal(opened(**inputs(ONE)).logits, place.model(**inputs(ONE)).logits)


@pytest.mark.skipif("any-to-any" not in get_supported_tasks(), reason="this pipeline came with transformers 5")
def test_the_pipeline_answers(place, inputs):
    pipe = pipeline("any-to-any", model=place.model, processor=place.processor)
    said = pipe(text=[dict(message) for message in ONE], return_full_text=False, **GREEDY)
    expected = place.processor.batch_decode(new_tokens(place.model, inputs(ONE)), skip_special_tokens=True)
    assert [one["generated_text"] for one in said] == expected
