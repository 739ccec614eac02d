"""Refusals, and what only sounds like one."""

from typing import Any

import pytest

from nemo_desta.recipes.gates import GatesConfig, RowGates
from nemo_desta.recipes.gates.refusals import RefusalGate
from nemo_desta.recipes.languages import Languages

GATES = RowGates(GatesConfig(leak=False))


def refused(response: str, gates: RowGates = GATES, **fields: bool) -> bool:
    verdict = gates.check({"prompt": "Describe the audio.", "response": response, **fields})
    assert verdict is None or verdict.reason == "refusal", verdict
    return verdict is not None


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I can't listen to audio.",
        "As a text-based assistant, I do not have ears.",
        "As an AI, I don't experience sound the way you do.",
        "I'm sorry, but I cannot help with that.",
        "I\u2019m sorry, but I can\u2019t process audio files directly.",
        "I apologize, but I'm unable to identify the speaker.",
        "Unfortunately, I am not able to transcribe this.",
        "I cannot hear the audio, so this is a guess.",
        "I can't actually listen to the recording.",
        "I don't have access to the audio file you mention.",
        "I am an AI language model and cannot perceive sound.",
        "I'm just a language model, so I do not know.",
        "No audio was provided.",
        "It seems that the audio file was not attached.",
        "Please provide the audio clip and I will describe it.",
        "Could you upload the recording?",
        "I can only process text, so tell me more.",
        "I have no way of playing audio.",
        "First I think.\n</think>\n\nSorry, I cannot assist with this request.",
    ],
)
def test_refusals(answer: str) -> None:
    assert refused(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot hear any speech in the recording.",
        "I can't hear a voice here, only rain.",
        "I'm sorry, but I can't come to your party tonight, says the man.",
        "Sorry to hear that you lost your keys!",
        "I'm afraid of the dark, whispers the child.",
        "The speaker cannot say where the road ends.",
        "It is not clear where this was recorded, and I would not guess.",
        "As a listener, I cannot say who it is.",
        "Text is provided below: kids are talking by the door.",
        "An AI assistant speaks in this clip and cannot stop.",
        "No dogs can be heard, and no engine is running.",
        "Please close the door, the woman says.",
        "I can't help but smile at her laughter.",
    ],
)
def test_what_is_no_refusal(answer: str) -> None:
    assert not refused(answer)


def test_the_thought_may_doubt() -> None:
    assert not refused("I cannot listen to the audio, but I was told enough.\n</think>\n\nIt rains.")


def test_prompts_that_cannot_be_answered_may_be_refused() -> None:
    answer = "I cannot listen to the audio of tomorrow."
    assert refused(answer) and not refused(answer, unanswerable=True)
    assert GATES.check({"prompt": "?", "response": answer}, {"id": "c", "unanswerable": True}) is None


def test_own_expressions_are_added() -> None:
    gates = RowGates(GatesConfig(refusals=RefusalGate(extra=[r"\bleider kann ich"]), language=None, leak=False))
    assert refused("Leider kann ich das nicht hören.", gates)
    assert refused("I cannot listen to audio.", gates)
    assert not refused("Leider regnet es.", gates)


def talks(answer: str, **fields: Any) -> bool:
    verdict = RowGates(GatesConfig(leak=False)).check({"prompt": "What is said?", "response": answer, **fields})
    assert verdict is None or verdict.reason == "assistant talk", verdict
    return verdict is not None


@pytest.mark.parametrize(
    "answer",
    [
        "I'm ready to help. What's your question?",
        "I'm sorry for your loss. I'm here to help you.",
        "I am a language AI, trained on texts.",
        "(No, I'm not a man or a woman. I'm a helpful AI named Max.)",
        "Hello! How can I help you today?",
        "What would you like to know?",
        "Please provide more context.",
    ],
)
def test_assistant_talk(answer: str) -> None:
    assert talks(answer)
    assert not talks(answer, prompt_kind="role_play")
    assert not talks(answer, seed_description=f"[00:00-00:02] {answer} (Gender: male, Duration: 2s)")
    gate = RowGates(GatesConfig(leak=False, refusals=RefusalGate(talk=False)))
    assert gate.check({"prompt": "What is said?", "response": answer}) is None


@pytest.mark.parametrize(
    "answer",
    [
        'The speaker says: "How can I help you today?"',
        "The woman asks how she can help.",
        "He is ready to help his friend.",
        "An AI assistant speaks in this clip.",
        "The man wonders what the question is.",
        "It is a dog. I am sure of it.",
        "The speaker is here to help.",
        "She would like to know what is going on.",
        "A clerk asks for more details.",
    ],
)
def test_helpful_people_are_no_assistants(answer: str) -> None:
    assert not talks(answer)


@pytest.mark.parametrize(
    ("code", "talk", "near"),
    [
        ("de", "Ich bin ein KI-Assistent.", "Ich bin ein Fan von Jazz, sagt er."),
        ("es", "¿En qué puedo ayudarte?", "Ella pregunta en qué puede ayudar."),
        ("fr", "Comment puis-je vous aider ?", "Elle demande comment elle peut aider."),
        ("ja", "私は言語モデルです。", "話者は言語について話しています。"),
        ("zh", "我是一个人工智能助手。", "说话人在谈论人工智能。"),
    ],
)
def test_assistant_talk_in_other_languages(code: str, talk: str, near: str) -> None:
    gates = RowGates(GatesConfig(leak=False, language=None), languages=Languages(code))
    row = {"prompt": "?", "text_language": code}
    assert gates.check({**row, "response": talk}).reason == "assistant talk"
    assert gates.check({**row, "response": near}) is None
