"""The names that users and scripts rely on: importable, callable, with the arguments that documents name."""

import importlib
import inspect

import pytest

#: Dotted name -> arguments that its signature must have, with the default where there is one.
CALLABLES = {
    "core.SpeechLM": ("llm", "perception", "prompts"),
    "core.SpeechLM.from_pretrained": ("pretrained_model_name_or_path", "llm", "encoders", "device", "check_identity"),
    "core.SpeechLM.embed": ("batch", "padding_side"),
    "core.SpeechLM.loss": ("batch",),
    "core.SpeechLM.perceive": ("audio", "audio_lens"),
    "core.SpeechLM.num_audio_tokens": ("num_samples",),
    "perception.encoders.WhisperEncoder.from_pretrained": ("path_or_id", {"layer_ids": None}),
    "perception.encoders.WhisperEncoder.shape": ("path", {"layer_ids": None}),
    "perception.encoders.BeatsEncoder.from_checkpoint": ("path", {"layer_ids": None, "original_masks": False}),
    "perception.encoders.BeatsEncoder.fbank": ("audio", "audio_lens"),
    "perception.encoders.BeatsEncoder.shape": ("path", {"layer_ids": None, "original_masks": False}),
    "perception.encoders.MuqEncoder.from_pretrained": ("path_or_id", {"layer_ids": None, "original_masks": False}),
    "perception.encoders.EatEncoder.from_pretrained": ("path_or_id", {"layer_ids": None, "original_masks": False}),
    "perception.encoders.EncoderShape": ("hidden_size", "layer_ids", "num_layers", "frame_grid"),
    "perception.encoders.register_encoder": ("name",),
    "perception.encoders.build_encoder": ("name_or_config",),
    "perception.encoders.encoder_shape": ("name_or_config",),
    "perception.projector.register_projector": ("name",),
    "perception.projector.build_projector": ("name", "encoders", "output_size"),
    "perception.projector.Projector": ("encoders", "output_size"),
    "perception.fused.FusedPerception": ("encoders", "projector", {"sampling_rate": 16_000}),
    "perception.build.token_counter": ("config", "output_size"),
    "ops.mix_pool": (
        *("layers", "layer_weights", "norm_weight", "norm_bias", "query", "position_bias", "windows", "mode"),
    ),
    "models.DestaModel": ("cfg",),
    "models.DestaModel.from_pretrained": ("pretrained_model_name_or_path", "llm", "encoders", "device"),
    "models.DestaModel.save_pretrained": ("save_directory",),
    "models.DestaModel.chat": ("messages",),
    "models.DestaModel.stream": ("messages",),
    "models.DestaModel.generate": ("prompts", "audios", "audio_lens", "generation_config"),
    "models.checkpoint.import_released": ("kind", "folder", "llm", "encoders"),
    "models.checkpoint.read_released": ("kind", "folder"),
    "models.checkpoint.write_released": ("kind", "folder", "output"),
    "models.checkpoint.save_folder": ("folder", "config", "tensors", "tokenizer"),
    "models.checkpoint.load_folder": ("folder",),
    "models.checkpoint.load_projector": ("source", "projector"),
    "models.checkpoint.open_model": ("source",),
    "answering.chat.answer": ("model", "messages", {"transcript": "given"}),
    "answering.chat.stream": ("model", "messages", {"transcript": "given"}),
    "answering.engine.ChatEngine": ("model",),
    "answering.engine.prepare": ("transcript", "transcriber"),
    "answering.offline.answer_rows": ("model",),
    "recipes.describe": ("row", {"dialect": "desta25"}),
    "evaluation.score": ("benchmark", "items", {"mode": "official"}),
    "evaluation.files.read_items": ("benchmark",),
    "testing.models.tiny_speech_lm": ("projector",),
    "testing.models.tiny_config": ("folder",),
    "__main__.main": ("argv",),
}


def find(name):
    """The object of a dotted name below nemo_desta: attributes where there are any, else modules."""
    found = importlib.import_module("nemo_desta")
    for part in name.split("."):
        if not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_name_is_there_with_its_arguments(name):
    found = find(name)
    assert callable(found)
    parameters = inspect.signature(found).parameters
    for expected in CALLABLES[name]:
        for argument, default in (expected if isinstance(expected, dict) else {expected: None}).items():
            assert argument in parameters, f"{name} has no argument '{argument}': {list(parameters)}"
            if isinstance(expected, dict):
                assert parameters[argument].default == default


def test_further_settings_of_a_chat_reach_the_sampling():
    for name in ("models.DestaModel.chat", "answering.chat.answer"):
        kinds = [parameter.kind for parameter in inspect.signature(find(name)).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD in kinds


def test_what_public_calls_return():
    assert find("types.EncoderOutput")._fields == ("layers", "lens")
    assert {"verdicts", "totals"} <= {*find("evaluation.Scores").__dataclass_fields__, *dir(find("evaluation.Scores"))}
    assert find("core").__all__ == ["SpeechLM"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    for room in ("core", "models"):
        with pytest.raises(AttributeError, match=f"module 'nemo_desta.{room}' has no attribute 'Nothing'"):
            _ = find(room).Nothing
