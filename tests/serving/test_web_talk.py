"""The page without a browser: what a visitor's clicks do, and what is shown of it."""

import re
import socket
import sys

import numpy as np
import pytest
import soundfile

from nemo_desta.data.audio_io import AudioError
from nemo_desta.errors import ConfigError
from nemo_desta.serving.web import launch, make_page
from nemo_desta.serving.web_talk import HEIGHT, Talk, card, waveform
from tests.serving.serving_tools import noise

SHORT = {"max_new_tokens": 8, "temperature": 0.0}


@pytest.fixture
def talk(model):
    return Talk(model, system=None, transcript="given", sampling={})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "a & b.wav"
    soundfile.write(path, noise(0.5), 16_000)
    return str(path)


def test_a_waveform_shows_where_it_is_loud():
    audio = np.concatenate([np.zeros(8000), 0.5 * np.sin(np.arange(8000)), np.zeros(8000)]).astype(np.float32)
    points = re.findall(r"M(\d+)\.5 ([\d.]+)V([\d.]+)", waveform(audio, width=30))
    spans = [float(bottom) - float(top) for _, top, bottom in points]
    assert len(spans) == 30 and max(spans[:9] + spans[21:]) <= 1.0
    assert min(spans[11:19]) > 0.9 * HEIGHT


@pytest.mark.parametrize("num_samples", [1, 7, 319, 16_000])
def test_a_waveform_can_be_drawn_of_any_length(num_samples):
    assert waveform(np.zeros(num_samples, np.float32)).count("M") == 320


def test_names_and_transcripts_are_text_and_not_html():
    picture = card("<b>x</b>.wav", noise(0.1), 0.1, "<script>")
    assert "<script>" not in picture and "&lt;b&gt;x&lt;/b&gt;.wav" in picture


def test_question_clip_and_answer_are_shown_and_the_clip_waits_no_more(model, talk, clip):
    talk.attach([clip])
    assert "a &amp; b.wav" in talk.cards and "0.5 s" in talk.cards
    shown = [list(talk.messages) for _ in talk.ask("What is this?", SHORT)]
    assert len(shown) >= 2 and talk.cards == ""
    assert [message["role"] for message in talk.messages] == ["user", "user", "assistant"]
    assert talk.messages[0]["content"] == {"path": clip} and talk.messages[1]["content"] == "What is this?"
    message = {"role": "user", "content": "<|AUDIO|>\nWhat is this?", "audios": [clip]}
    said = model.chat([message], **SHORT)
    assert talk.messages[2]["content"] == f"{said}\n\n*(the limit of new tokens was reached)*"


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(talk):
    for count, _ in enumerate(talk.ask("Hello", {**SHORT, "max_new_tokens": 500})):
        if count == 1:
            talk.stop()
    assert talk.messages[-1]["content"].endswith("*(stopped)*")
    assert talk.session.messages[-1]["role"] == "assistant"
    list(talk.ask("And now?", SHORT))
    assert len(talk.session.messages) == 4


def test_a_bad_file_is_named_by_its_own_name(talk, clip, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"nonsense")
    with pytest.raises(AudioError, match="cannot read bad.wav") as error:
        talk.attach([clip, str(tmp_path / "bad.wav")])
    assert str(tmp_path) not in str(error.value)
    assert talk.cards.count("<figure") == 1


def test_a_question_that_fails_leaves_the_page_as_it_was(talk, clip):
    talk.attach([clip])
    with pytest.raises(ValueError, match="2 <.AUDIO.> tags but 1 audios"):
        list(talk.ask("<|AUDIO|> <|AUDIO|>", SHORT))
    with pytest.raises(ConfigError, match="the question is empty"):
        list(talk.ask("  ", SHORT))
    assert talk.messages == [] and talk.cards.count("<figure") == 1
    list(talk.ask("Well?", SHORT))
    assert talk.cards == ""


def test_removed_clips_are_not_asked_about(talk, clip):
    talk.attach([clip])
    talk.detach()
    list(talk.ask("Hello", SHORT))
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.session.messages[0]["audios"] == []


def test_a_model_s_text_makes_the_browser_fetch_nothing(talk, monkeypatch):
    from nemo_desta.answering.engine import Delta

    text = "See ![this](http://elsewhere/x.png)"
    monkeypatch.setattr(talk.session, "ask", lambda prompt: iter([Delta(0, text, False, "stop", 1)]))
    list(talk.ask("Hello", SHORT))
    assert "![" not in talk.messages[-1]["content"]


def test_thoughts_are_a_fold_of_their_own(talk, monkeypatch):
    from nemo_desta.answering.engine import Delta

    deltas = [("I hear rain.", True, None), ("It ", False, None), ("rains.", False, "stop")]
    monkeypatch.setattr(talk.session, "ask", lambda prompt: iter([Delta(0, *delta, 1) for delta in deltas]))
    list(talk.ask("What?", SHORT))
    thought, answer = talk.messages[-2:]
    assert thought["metadata"] == {"title": "Thinking", "status": "done"} and thought["content"] == "I hear rain."
    assert answer["content"] == "It rains." and "metadata" not in answer


def test_the_page_can_be_built_by_this_stack_s_gradio(model):
    page = make_page(model, sampling={"temperature": 0.3})
    labels = [block.label for block in page.blocks.values() if hasattr(block, "label")]
    assert {"Audio files", "Or record", "Conversation", "Temperature"} <= set(labels)
    assert not page.analytics_enabled


def test_a_taken_port_is_named(model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port}; choose another \(page.port\)"):
            launch(make_page(model), port=port)


def test_without_gradio_the_line_that_installs_it_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match="pip install gradio"):
        make_page(model)
