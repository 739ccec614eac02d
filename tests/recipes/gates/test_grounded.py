"""The grounding gate: answers that do not name what the prompt asks about, and answers that do in their own words."""

from typing import Any

import pytest

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates import GatesConfig, RowGates
from nemo_desta.recipes.gates.wordings import grounded_attributes
from nemo_desta.recipes.languages import Languages

DESCRIPTION = (
    "[00:00-00:02] nine (Gender: male, Accent: German, Emotion: fearful, Digit: 9, Language: English, "
    "Sound class: rooster crowing, Instrument: guitar/piano, Duration: 2s)"
)
VALUES = {
    "gender": {"male", "female"},
    "emotion": {"fearful", "happy"},
    "digit": {"8", "9"},
    "language": {"english", "german"},
    "sound_class": {"rooster crowing", "dog barking", "sea waves"},
    "instrument": {"guitar", "piano", "harp"},
}


def verdict(answer: str, *asked: str, kind: str = "ask", code: str = "en", **fields: Any) -> str | None:
    """The reason and detail of the rejection."""
    settings = {"grounded": fields.pop("grounded", {}), "leak": False, "language": None}
    gates = RowGates(parse(GatesConfig, settings, "gates"), values=VALUES, languages=Languages(code))
    row = {
        "prompt": "Answer the question, please.",
        "response": answer,
        "seed_description": DESCRIPTION,
        "prompt_requires": list(asked),
        "prompt_kind": kind,
        "text_language": code,
        **fields,
    }
    found = gates.check(row)
    assert found is None or found.reason == "not grounded", found
    return found and found.detail


@pytest.mark.parametrize("kind", ["ask", "describe", "yes_no", ""])
@pytest.mark.parametrize(
    "answer",
    [
        "The gender of the speaker is unknown.",
        "I would say that the gender is not specified.",
        "It is impossible to determine the speaker's gender.",
        "The gender of the voice cannot be determined from this. It may be anyone.",
        "GENDER: UNKNOWN",
    ],
)
def test_evasions_are_rejected_in_every_kind_of_prompt(answer: str, kind: str) -> None:
    assert "gender is male, the answer evades" in (verdict(answer, "gender", kind=kind) or "")


@pytest.mark.parametrize(
    ("attribute", "answer"),
    [
        ("gender", "The speaker is male."),
        ("gender", "A MAN"),
        ("gender", "He does."),
        ("gender", "Write 'Mr' on the badge."),
        ("gender", "Female."),  # wrong, which is for the fact check
        ("gender", "The gender is hard to determine at first, but the voice is a man's."),
        ("gender", "Who it is remains unknown, a boy perhaps."),
        ("emotion", "The speaker sounds scared."),
        ("emotion", "There is fear in the voice."),
        ("emotion", "Nervously excited, I would say."),
        ("emotion", "Nothing is certain here, and the voice is anxious."),
        ("digit", "9"),
        ("digit", "Nine."),
        ("digit", "Ten, if one is added."),
        ("language", "English"),
        ("sound_class", "A rooster."),
        ("sound_class", "It crows."),
        ("sound_class", "Roosters crowed at dawn."),
        ("sound_class", "A dog."),
        ("sound_class", "The ocean, as waves break."),
        ("instrument", "A guitarist and a pianist play."),
        ("accent", "He comes from abroad."),  # no attribute of the default
    ],
)
def test_answers_that_name_the_attribute_pass(attribute: str, answer: str) -> None:
    assert verdict(answer, attribute) is None


@pytest.mark.parametrize(
    ("attribute", "answer"),
    [
        ("gender", "The speaker is a person who is a doctor."),
        ("emotion", "The speaker is likely to be a child."),
        ("digit", "It is a number."),
        ("language", "The speaker talks about a door."),
        ("sound_class", "A natural phenomenon, specifically a sound."),
        ("instrument", "The music is loud."),
    ],
)
def test_answers_that_name_no_value_are_rejected(attribute: str, answer: str) -> None:
    assert "the answer names none" in (verdict(answer, attribute) or "")
    assert verdict(answer, attribute, kind="role_play") is None
    assert verdict(answer) is None and verdict(answer, "volume") is None
    assert verdict(answer, attribute, unanswerable=True) is None
    assert verdict(answer, attribute, seed_description="[00:00-00:02] (Duration: 2s)") is None
    assert verdict(answer, attribute, prompt="Answer in German, please.") is None
    assert verdict(answer, attribute, grounded={"max_values": 1}) is None  # no closed set
    assert verdict(answer, attribute, grounded=None) is None


def test_repeated_words_are_those_of_the_clip() -> None:
    def repeated(answer: str, kind: str = "repeat", **fields: bool) -> bool:
        audio = {"audio": "a.wav", "text": "Seven kids are talking by the door."}
        messages = [{"role": "user", "content": "Repeat.", "audios": [audio]}]
        return verdict(answer, "transcript", kind=kind, messages=messages, **fields) is None

    assert repeated("Seven kids are talking by the door.") and repeated('He says, "7 kids talking by the door"')
    assert not repeated("The door is where the kids are.") and repeated("Seven kids are", truncated=True)
    assert not repeated("I am so happy", truncated=True)
    assert not repeated("I'm so happy to be here.") and repeated("I'm so happy to be here.", kind="ask")


@pytest.mark.parametrize(
    ("code", "description", "attribute", "evasive", "none", "good"),
    [
        ("de", "Geschlecht: männlich", "gender", "Das Geschlecht ist unbekannt.", "Ein Arzt.", "Er ist ein Herr."),
        (
            "de",
            "Gefühl: ängstlich",
            "emotion",
            "Das Gefühl ist nicht klar.",
            "Ein Arzt.",
            "Die Stimme klingt nervöser.",
        ),
        ("es", "Sexo: masculino", "gender", "El sexo es desconocido.", "Habla alguien.", "Es un hombre."),
        ("fr", "Sexe: masculin", "gender", "Le sexe n'est pas connu.", "Cette personne parle.", "C'est un homme."),
        ("ja", "性別: 男性", "gender", "話者の性別は不明です。", "話者は医者です。", "男の人です。"),
        ("zh", "性别: 男", "gender", "说话人的性别未知。", "说话人是医生。", "这是一位男士。"),
    ],
)
def test_other_languages(code: str, description: str, attribute: str, evasive: str, none: str, good: str) -> None:
    about = {"code": code, "seed_description": f"[00:00-00:02] ({description}, X: 2s)"}
    assert "evades" in (verdict(evasive, attribute, kind="describe", **about) or "")
    assert "names none" in (verdict(none, attribute, **about) or "")
    assert verdict(good, attribute, **about) is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("The person is wearing a black hoodie and a white shirt.", False),
        ("The sound of a violin is a familiar comfort in the world.", False),
        ("It lasts 2s.", False),
        ("A man.", True),
        ("Somebody is scared.", True),
        ("A rooster crows in the morning.", True),
        ('Someone says "nine".', True),
    ],
)
def test_a_description_of_the_clip_names_something_that_the_llm_was_told(answer: str, told: bool) -> None:
    strict = {"kind": "describe", "grounded": {"kinds": ["ask", "describe"]}}
    assert (verdict(answer, **strict) is None) == told
    assert verdict(answer, kind="describe") is None
    assert verdict(answer, **strict, seed_description="[00:00-00:02] (|a door slams|, Duration: 2s)") is None
    row = {"response": answer, "prompt_kind": "describe", "seed_description": DESCRIPTION, "messages": []}
    assert grounded_attributes(row) == {"description": told}


def test_a_description_of_speech_may_repeat_it() -> None:
    strict = {"kind": "describe", "grounded": {"kinds": ["describe"]}, "seed_description": "[00:00-00:02] It rains."}
    said = {
        "messages": [{"role": "user", "content": "<|AUDIO|>", "audios": [{"audio": "x.wav", "text": "It rains."}]}]
    }
    assert verdict("It rains, somebody says.", **strict, **said) is None
    assert "names nothing" in (verdict("A long walk on a sunny day.", **strict, **said) or "")


def test_an_empty_list_of_attributes_is_an_error() -> None:
    with pytest.raises(ConfigError, match="gates.grounded.attributes is empty"):
        parse(GatesConfig, {"grounded": {"attributes": []}}, "gates")
