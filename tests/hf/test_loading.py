"""`from_pretrained`: dtype, device_map, quantised LLMs, adapters in folders and exports, pipelines by path."""

import importlib.util

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, BitsAndBytesConfig, pipeline
from transformers.pipelines import get_supported_tasks

from nemo_desta.core.model import SpeechLM
from nemo_desta.errors import ConfigError
from nemo_desta.hf import DestaForConditionalGeneration
from nemo_desta.sharing.export import export_model
from tests.hf.conftest import GREEDY, ONE, TEXT, TWO, clip, new_tokens, our_logits, parts_of, write_model

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
LAYERS = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu", "lm_head": "cpu"} | {
    "model.rotary_emb": "cpu"
}


@pytest.mark.parametrize(
    "name, dtype",
    [("dtype", torch.bfloat16), ("dtype", "float16"), ("dtype", "auto"), ("torch_dtype", torch.bfloat16)],
)
def test_the_dtype_reaches_the_llm(place, inputs, name, dtype):
    model = AutoModel.from_pretrained(place.folder, **{name: dtype})
    expected = torch.float32 if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))
    assert model.dtype == model.llm.dtype == expected
    batch = inputs(ONE).to(expected)
    assert batch["audio"].dtype == torch.float32
    assert model(**batch).logits.dtype == expected


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {**LAYERS, "model.layers.1": "disk"}])
def test_a_device_map_changes_no_token(place, inputs, tmp_path, device_map):
    pytest.importorskip("accelerate")
    how = {"offload_folder": tmp_path} if isinstance(device_map, dict) else {"max_memory": {"cpu": "1GB"}}
    model = AutoModel.from_pretrained(place.folder, device_map=device_map, **how)
    assert {parameter.device.type for parameter in model.perception.parameters()} == {"cpu"}
    assert torch.equal(new_tokens(model, inputs(ONE, TWO)), new_tokens(place.model, inputs(ONE, TWO)))
    if "model.layers.1" in device_map:
        assert model.hf_device_map == device_map


def test_offloaded_embeddings_are_refused(place, tmp_path):
    pytest.importorskip("accelerate")
    with pytest.raises(ConfigError, match="device_map that keeps them"):
        AutoModel.from_pretrained(
            place.folder,
            device_map={**LAYERS, "model.embed_tokens": "disk", "model.layers.1": "cpu", "lm_head": "disk"},
            offload_folder=tmp_path,
        )


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_llm_answers_and_the_projector_trains(place, inputs, trainer, tmp_path, bits):
    how = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    model = AutoModel.from_pretrained(place.folder, quantization_config=BitsAndBytesConfig(**how))
    kind = type(model.llm.model.layers[0].mlp.up_proj).__name__
    assert kind == {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    assert len(new_tokens(model, inputs(ONE, TWO))) == 2
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer(model).train()
    for name, parameter in model.named_parameters():
        trained = name.startswith("perception.projector.")
        assert trained == parameter.requires_grad and (trained or torch.equal(parameter, before[name])), name
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert again.llm.dtype == torch.float32 and not getattr(again.llm, "is_quantized", False)


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_without_bitsandbytes_the_message_names_it(place):
    with pytest.raises(ImportError, match="bitsandbytes"):
        AutoModel.from_pretrained(place.folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_adapters_of_an_export_are_part_of_the_model(inputs, labelled, tmp_path):
    pytest.importorskip("peft")
    from peft import PeftModel

    folder, config = write_model(tmp_path, lora={"r": 4})
    export = export_model(folder, tmp_path / "export")
    model = AutoModel.from_pretrained(export, **parts_of(tmp_path))
    ours = SpeechLM.from_pretrained(folder, device="cpu")
    assert list(ours.state_dict()) == list(model.state_dict())
    assert torch.equal(model(**inputs(TWO)).logits, our_logits(ours, TWO))
    bare = AutoModelForCausalLM.from_pretrained(config.llm.path)
    assert not torch.equal(model(**inputs(TEXT)).logits, bare(**inputs(TEXT)).logits)
    with_adapters = PeftModel.from_pretrained(bare, export / "lora")
    torch.testing.assert_close(model(**inputs(TEXT)).logits, with_adapters(**inputs(TEXT)).logits)

    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**inputs(TWO)).logits, our_logits(ours, TWO))
    again.train()(**labelled(TWO)).loss.backward()
    trained = {name for name, parameter in again.named_parameters() if parameter.grad is not None}
    assert again.llm.training and any(".lora_" in name for name in trained)
    assert all(".lora_" in name or name.startswith("perception.projector.") for name in trained)


def test_an_export_opens_with_the_places_of_its_parts(place, inputs, tmp_path):
    export = export_model(place.folder, tmp_path / "export")
    with pytest.raises(FileNotFoundError, match="Say where it is"):
        AutoModel.from_pretrained(export)
    model = AutoModel.from_pretrained(export, **parts_of(place.path))
    assert torch.equal(model(**inputs(ONE)).logits, place.model(**inputs(ONE)).logits)
    processor = AutoProcessor.from_pretrained(export, **parts_of(place.path))
    model.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")  # one folder for both, without a word about places
    again = AutoProcessor.from_pretrained(tmp_path / "both").apply_chat_template(ONE, tokenize=True)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "both")(**again).logits, model(**inputs(ONE)).logits)


def test_a_subfolder_is_refused(place):
    with pytest.raises(TypeError, match="no argument 'subfolder'"):
        DestaForConditionalGeneration.from_pretrained(place.folder, subfolder="x")


@pytest.mark.skipif("any-to-any" not in get_supported_tasks(), reason="this pipeline came with transformers 5")
def test_a_pipeline_opens_a_folder_by_its_path_and_answers(place, inputs):
    pipe = pipeline("any-to-any", model=str(place.folder), dtype="float32")
    chat = [dict(message) for message in ONE]
    said = pipe(text=chat, return_full_text=False, generate_kwargs=dict(GREEDY))
    expected = place.processor.batch_decode(new_tokens(place.model, inputs(ONE)), skip_special_tokens=True)
    assert [one["generated_text"] for one in said] == expected
    several = pipe(
        text=[chat, [dict(message) for message in TEXT]], return_full_text=False, generate_kwargs=dict(GREEDY)
    )
    assert several[0] == said and len(several) == 2
    prompt = place.processor.apply_chat_template(ONE)
    by_prompt = pipe(prompt, audio=ONE[0]["audios"], return_full_text=False, generate_kwargs=dict(GREEDY))
    assert by_prompt[0]["generated_text"] == said[0]["generated_text"]
    with pytest.raises(ConfigError, match="'do_sample' is neither"):
        pipe(text=chat, do_sample=False)


@pytest.mark.skipif("any-to-any" not in get_supported_tasks(), reason="this pipeline came with transformers 5")
def test_a_batch_of_a_pipeline_is_refused_where_it_would_cut_a_clip(place):
    pipe = pipeline("any-to-any", model=str(place.folder), dtype="float32")
    chats = [[{**ONE[0], "audios": [clip(samples)]}] for samples in (16_000, 20_000)]
    pipe.tokenizer.padding_side = "left"  # as many tokenizers of LLMs have it
    with pytest.raises(ValueError, match="make batches with the processor"):
        pipe(text=chats, batch_size=2, return_full_text=False, generate_kwargs=dict(GREEDY))
