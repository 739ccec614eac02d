"""Answers in another language or script than the prompt's."""

import pytest

from nemo_desta.recipes.gates import GatesConfig, RowGates
from nemo_desta.recipes.items import Rejection

GATES = RowGates(GatesConfig(leak=False))
DESCRIPTION = "[00:00-00:02] Kids are talking by the door. (Gender: male, Emotion: happy, Duration: 2s)"


def check(prompt: str, response: str, transcript: str | None = None, **clip: str) -> Rejection | None:
    audios = [{"audio": "a.wav", "text": transcript}]
    row = {"prompt": prompt, "response": response, "seed_description": DESCRIPTION, "truncated": False}
    return GATES.check({**row, "messages": [{"role": "user", "content": prompt, "audios": audios}]}, clip)


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("de", "Der Sprecher klingt fröhlich und erzählt, dass die Kinder vor der Tür miteinander reden."),
        ("fr", "La personne qui parle semble heureuse et dit que les enfants discutent près de la porte."),
        ("es", "La persona que habla parece contenta y dice que los niños están hablando junto a la puerta."),
        ("it", "La persona che parla sembra felice e dice che i bambini stanno parlando vicino alla porta."),
        ("pl", "Osoba mówiąca brzmi radośnie i opowiada, że dzieci rozmawiają przy drzwiach swojego domu."),
        ("tr", "Konuşan kişi mutlu görünüyor ve çocukların kapının yanında konuştuğunu söylüyor."),
        ("vi", "Người nói nghe có vẻ vui vẻ và nói rằng bọn trẻ đang trò chuyện bên cạnh cánh cửa."),
    ],
)
def test_other_languages_are_found(language: str, answer: str) -> None:
    verdict = check("How does the speaker feel?", answer)
    assert verdict is not None and verdict.reason == "wrong language"
    assert verdict.detail.startswith(f"{language} (")
    assert check("How does the speaker feel?", f"A moment of thought.\n</think>\n{answer}") is not None


def test_answers_in_the_language_of_the_prompt_pass() -> None:
    german = "Der Sprecher klingt fröhlich und erzählt, dass die Kinder vor der Tür miteinander reden."
    assert check("Wie fühlt sich der Mann, der hier spricht?", german) is None
    english = "The speaker sounds happy, and says that kids are talking by the door."
    verdict = check("Wie fühlt sich der Mann, der hier spricht?", english)
    assert verdict is not None and verdict.detail.startswith("en")
    assert check("说话的人是什么心情?", "说话的人听起来很高兴,他说孩子们在门口聊天。") is None


@pytest.mark.parametrize(
    "prompt",
    [
        "Translate what is said into German.",
        "Answer in German: how does the speaker feel?",
        "Was sagt der Sprecher? Antworte auf Französisch.",
        "Give a translation of the words.",
    ],
)
def test_prompts_that_name_a_language_are_not_judged(prompt: str) -> None:
    assert (
        check(prompt, "Les enfants sont en train de parler devant la porte de la maison de leur grand-mère.") is None
    )
    assert check(prompt, "孩子们在门口聊天。") is None


def test_what_is_spoken_may_be_repeated() -> None:
    spoken = "Die Kinder reden an der Tür und lachen dabei ziemlich laut miteinander."
    assert check("Write down the spoken words, and nothing else.", spoken, transcript=spoken) is None
    assert check("Write down the spoken words, and nothing else.", spoken, language="de") is None
    assert check("Write down the spoken words, and nothing else.", spoken, language="en") is not None
    assert check("What does the speaker say?", "The speaker says: 孩子们在聊天", transcript="孩子们在聊天") is None


@pytest.mark.parametrize(
    "answer",
    [
        "male, happy",
        "sad",
        "Ja, natürlich.",
        '{"gender": "male", "emotion": "happy", "pitch": "high", "accent": "American English", "volume": "loud"}',
        "- Gender: male\n- Emotion: happy\n- Accent: American\n- Pitch: high\n- Speaking speed: fast\n- Volume: loud",
        "Dog barking. Rain falling. Engine idling. Footsteps approaching. Door slamming. Glass breaking.",
        "WOOF! WOOF! A DOG BARKS LOUDLY IN A YARD.",
        "Grrr! Woof woof woof! Arf arf arf, bow-wow, woof! Grrrrr, yip yip!",
        "The word sounds like 'déjà vu', as in a café; the pitch rises by 3 µs or by π.",
        "In Japanese (日本語) this greeting would be polite.",
    ],
)
def test_short_quoted_or_formal_answers_pass(answer: str) -> None:
    assert check("Describe the audio.", answer) is None


@pytest.mark.parametrize(
    ("answer", "script"),
    [
        ("The speaker sounds 高兴 and calm.", "2 letters of Han"),
        ("The speaker sounds весело and calm.", "6 letters of Cyrillic"),
        ("The speaker sounds سعيد and calm.", "4 letters of Arabic"),
    ],
)
def test_slips_into_another_script(answer: str, script: str) -> None:
    verdict = check("How does the speaker feel?", answer)
    assert verdict is not None and verdict.reason == "unexpected script" and verdict.detail.startswith(script)


@pytest.mark.parametrize(
    "answer", ["La voiture est un mère de la voiture.", "Der Mann ist nicht sehr alt.", "El hombre está muy contento."]
)
def test_short_answers_in_another_language_are_found_by_their_words(answer: str) -> None:
    verdict = check("Is the speaker a man or a woman?", answer)
    assert verdict is not None and verdict.reason == "wrong language"
    assert check("Is the speaker a man or a woman?", answer, transcript=answer) is None
    assert check("Is the speaker a man or a woman? Say it in French.", answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "Male.",
        "La Vie en Rose",
        "Je ne sais quoi",
        "Guten Tag",
        "A dog barks loudly.",
        "Tango, salsa, flamenco, jazz.",
        "El Camino de Santiago de Compostela",
        "Rain, wind, thunder, hail, birds.",
    ],
)
def test_short_english_answers_names_and_loanwords_pass(answer: str) -> None:
    assert check("What is it?", answer) is None


def test_invented_speech_in_another_language_is_found() -> None:
    quoted = 'The speaker says: "Ich bin nicht sehr alt, und das ist gut'
    verdict = check("What does the speaker say?", quoted)
    assert verdict is not None and verdict.detail.startswith("de ('")
    assert check("What does the speaker say?", quoted, transcript="Ich bin nicht sehr alt und das ist gut") is None
    assert check("What does the speaker say?", quoted, language="de") is None
    assert check("What does the speaker say in German?", quoted) is None
    for other in ("La Vie en Rose", "Guten Tag", "Das Boot und der Tod", "I am not very old", "Der Mann is here"):
        assert check("What does the speaker say?", f'The speaker says: "{other}" and is happy with it.') is None, other
