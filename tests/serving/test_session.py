"""A conversation with history: what the model is asked, what it hears again, what an interruption leaves."""

import json

import numpy as np
import pytest
import soundfile
import torch

from nemo_desta.answering.engine import ContextExceeded
from nemo_desta.data.audio_io import AudioError
from nemo_desta.demo.speech import synth
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.models.desta import DestaModel
from nemo_desta.serving.session import ChatSession
from nemo_desta.testing.models import tiny_config
from nemo_desta.testing.perception import tiny_speaking_whisper
from tests.serving.serving_tools import noise

SHORT = {"max_new_tokens": 8, "temperature": 0.0}


@pytest.fixture
def session(model):
    return ChatSession(model, sampling=SHORT)


def text(deltas):
    return "".join(delta.text for delta in deltas if not delta.thinking)


def test_answers_are_those_of_the_model_asked_with_the_whole_history(model, session):
    first, second = noise(0.5, 1), noise(0.8, 2)
    session.attach(first)
    session.attach(second)
    said = text(session.ask("What is this?"))
    again = text(session.ask("And then?"))

    question = {"role": "user", "content": "<|AUDIO|>\n<|AUDIO|>\nWhat is this?", "audios": [first, second]}
    assert said == model.chat([question], **SHORT)
    history = [question, {"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    assert again == model.chat(history, **SHORT)
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


def test_a_second_turn_runs_no_encoder(model, session):
    session.attach(noise(0.7, 3))
    list(session.ask("What is this?"))
    encoded, hits = model.audio_cache.num_encoded, model.audio_cache.num_hits
    list(session.ask("Are you sure?"))
    assert model.audio_cache.num_encoded == encoded and model.audio_cache.num_hits == hits + 1


def test_a_tag_in_the_question_is_where_the_clip_goes(model, session):
    session.attach(noise(0.5, 1))
    said = text(session.ask("Listen: <|AUDIO|> What is it?"))
    asked = {"role": "user", "content": "Listen: <|AUDIO|> What is it?", "audios": [noise(0.5, 1)]}
    assert said == model.chat([asked], **SHORT)


def test_an_interrupted_answer_stays_as_far_as_it_was_said(session):
    session.attach(noise(0.5))
    deltas = session.ask("What is this?")
    said = text([next(deltas), next(deltas), next(deltas)])
    deltas.close()
    assert said and session.messages[-1] == {"role": "assistant", "content": said}
    assert session.waiting == []


@pytest.mark.parametrize(
    ("prompt", "error"), [("<|AUDIO|> <|AUDIO|> Compare.", RowError), ("long " * 3000, ContextExceeded)]
)
def test_a_question_that_cannot_be_asked_changes_nothing(session, prompt, error):
    session.attach(noise(0.5))
    with pytest.raises(error):
        list(session.ask(prompt))
    assert session.messages == [] and len(session.waiting) == 1


def test_a_bad_file_is_refused_when_it_is_attached(session, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF nonsense")
    with pytest.raises(AudioError, match="bad.wav"):
        session.attach(tmp_path / "bad.wav", name="bad.wav")
    assert session.waiting == []


def test_reset_keeps_the_system_message_only(model):
    session = ChatSession(model, system="Be brief.", sampling=SHORT)
    list(session.ask("Hello"))
    session.attach(noise(0.3))
    session.reset()
    assert session.messages == [{"role": "system", "content": "Be brief."}] and session.waiting == []


def test_a_saved_conversation_names_its_audios(session, tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(0.4), 16_000)
    session.attach(tmp_path / "x.wav", name="x.wav", text="hiss")
    said = text(session.ask("What is this?"))
    session.save(tmp_path / "saved.json")
    messages = json.loads((tmp_path / "saved.json").read_text("utf-8"))["messages"]
    assert messages[0]["audios"] == [{"audio": "x.wav", "text": "hiss"}]
    assert messages[1]["content"] == said


def test_whisper_is_refused_where_nobody_reads_transcripts(model):
    with pytest.raises(ConfigError, match="this model reads no transcripts"):
        ChatSession(model, transcript="whisper")


def test_whisper_writes_each_transcript_once(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, kind="llama")
    config["perception"]["encoders"]["whisper"]["path"] = tiny_speaking_whisper(tmp_path / "speaking")
    config["prompt"] = {"transcript": {"enabled": True}}
    model = DestaModel(config).eval()
    with torch.no_grad():  # as in tiny_model: answers that depend on the prompt
        model.llm.get_input_embeddings().weight.mul_(8)
        model.llm.get_output_embeddings().weight.mul_(8)
    spoken, silent = synth("one two three"), np.zeros(8000, np.float32)
    session = ChatSession(model, transcript="whisper", sampling=SHORT)
    session.attach(spoken)
    session.attach(silent)
    session.attach(spoken, text="given")
    texts = [audio["text"] for audio in session.waiting]
    assert texts == [model.transcriber([spoken])[0], " ", "given"] and texts[0]

    monkeypatch.setitem(model.__dict__, "transcriber", lambda clips: pytest.fail("written again"))
    said = text(session.ask("What is this?"))
    heard = [{"audio": clip, "text": text} for clip, text in zip((spoken, silent, spoken), texts, strict=True)]
    message = {"role": "user", "content": "<|AUDIO|>\n" * 3 + "What is this?", "audios": heard}
    assert said == model.chat([message], **SHORT)
    assert said != model.chat([message], transcript="none", **SHORT)
