"""Further properties that transformers' common tests ask of every model, and its trainer and PEFT."""

import copy
import pickle

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from nemo_desta.core.build import build_perception
from nemo_desta.errors import ConfigError
from nemo_desta.hf import DestaForConditionalGeneration
from tests.hf.conftest import GREEDY, ONE, TEXT, TWO, new_tokens, write_model


def test_names_and_tensors_are_those_of_our_own_model(place):
    ours, theirs = place.ours.state_dict(), place.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_weights_are_never_initialised_anew(place, fresh):
    for method in (fresh.post_init, fresh.init_weights, fresh.tie_weights):
        method()
    assert all(torch.equal(t, place.model.state_dict()[name]) for name, t in fresh.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saving_and_loading_keeps_every_dtype(place, inputs, tmp_path, dtype):
    model = AutoModel.from_pretrained(place.folder, dtype=dtype)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert again.dtype == getattr(torch, dtype)
    assert torch.equal(again(**inputs(TWO)).logits, model(**inputs(TWO)).logits)


def test_a_model_that_is_cast_as_a_whole_answers(fresh, inputs):
    fresh.to(torch.bfloat16)
    assert fresh(**inputs(TWO).to(torch.bfloat16)).logits.dtype == torch.bfloat16


def test_an_llm_in_shards_and_with_a_head_of_its_own_gives_its_logits(tmp_path):
    folder, config = write_model(tmp_path, kind="llama")
    llm = AutoModelForCausalLM.from_pretrained(config.llm.path)
    whole, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert whole.get_output_embeddings().weight is not whole.get_input_embeddings().weight
    (tmp_path / "parts/llm/model.safetensors").unlink()
    llm.save_pretrained(config.llm.path, max_shard_size="30KB")
    assert len(list((tmp_path / "parts/llm").glob("*.safetensors"))) > 1
    sharded = AutoModel.from_pretrained(folder, check_identity=False)
    batch = processor.apply_chat_template([ONE, TEXT], tokenize=True)
    assert torch.equal(sharded(**batch).logits, whole(**batch).logits)


def test_attention_implementations_agree(place, inputs):
    logits = {}
    for name in ("eager", "sdpa"):
        model = AutoModel.from_pretrained(place.folder, attn_implementation=name)
        assert model.llm.config._attn_implementation == model.config._attn_implementation == name
        with torch.no_grad():
            logits[name] = model(**inputs(ONE, TWO)).logits[inputs(ONE, TWO)["attention_mask"].bool()]
    torch.testing.assert_close(logits["eager"], logits["sdpa"], atol=1e-4, rtol=1e-4)
    model.set_attn_implementation("eager")
    assert model.llm.config._attn_implementation == "eager"


def test_a_copy_answers_the_same(place, inputs):
    assert torch.equal(new_tokens(copy.deepcopy(place.model), inputs(TWO)), new_tokens(place.model, inputs(TWO)))


def test_ready_parts_make_a_model_with_a_frozen_llm(place):
    settings = place.model.config.settings()
    llm = AutoModelForCausalLM.from_pretrained(settings.llm.path)
    perception = build_perception(settings.perception, 32, 1.0)
    model = DestaForConditionalGeneration(copy.deepcopy(place.model.config), llm, perception, place.model.prompts)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("perception.projector.") for name in trained)
    assert not model.train().llm.training


def test_what_cannot_be_saved_is_refused(place, fresh, tmp_path):
    assert not place.model.save_pretrained(tmp_path / "rank 1", is_main_process=False).exists()
    with pytest.raises(ConfigError, match="push=true"):
        place.model.save_pretrained(tmp_path, push_to_hub=True)
    peft = pytest.importorskip("peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=r"llm\..*q_proj"), fresh)
    with pytest.raises(ConfigError, match="save it with PEFT"):
        fresh.save_pretrained(tmp_path)


def test_adapters_of_peft_around_the_model_train_and_come_back(place, fresh, inputs, labelled, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=r"llm\..*q_proj", task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(fresh, config)
    model(**labelled(ONE)).loss.backward()
    assert any(p.grad is not None for name, p in model.named_parameters() if ".lora_" in name)
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(place.folder), tmp_path)
    assert torch.equal(again.generate(**inputs(ONE), **GREEDY), model.generate(**inputs(ONE), **GREEDY))
    assert not torch.equal(again(**inputs(ONE)).logits, place.model(**inputs(ONE)).logits)


def test_the_trainer_of_transformers_trains_evaluates_and_saves(place, fresh, trainer, tmp_path):
    training = trainer(fresh)
    before = training.evaluate()["eval_loss"]
    training.train()
    assert training.evaluate()["eval_loss"] < before
    training.save_model(tmp_path / "final")
    again = AutoModel.from_pretrained(tmp_path / "final")
    assert all(torch.equal(t, fresh.state_dict()[name]) for name, t in again.state_dict().items())
    assert AutoProcessor.from_pretrained(tmp_path / "final").to_dict() == place.processor.to_dict()


def test_the_processor_can_be_pickled_for_workers(place, inputs):
    before = inputs(TWO)  # the count of vectors is known now
    after = pickle.loads(pickle.dumps(place.processor)).apply_chat_template([TWO], tokenize=True)
    assert all(torch.equal(before[name], after[name]) for name in before)
