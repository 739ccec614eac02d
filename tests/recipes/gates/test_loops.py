"""Repetition loops against lists, laughter, refrains and tables."""

import json
import random

import pytest

from nemo_desta.recipes.gates import GatesConfig, RowGates

START = "The recording holds a man's voice, a dog that barks twice, and steady rain on a roof."
GATES = RowGates(GatesConfig(language=None, refusals=None, leak=False))


def loops(response: str) -> bool:
    verdict = GATES.check({"response": response, "prompt": "Describe the audio."})
    assert verdict is None or verdict.reason == "repetition loop", verdict
    return verdict is not None


@pytest.mark.parametrize(
    "loop",
    [
        "the " * 40,
        "and then " * 20,
        "The speaker is happy. " * 8,
        "In the background there is a faint hum of a machine that runs. " * 4,
        "and it is loud, " * 12 + "and it",
        "".join(f"{number}. The sound is loud.\n" for number in range(1, 20)),
        "Sad. sad, SAD! " * 12,
        "ha" * 80,
        "." * 120,
        "! " * 60,
        "0101" * 40,
        "\n" * 100 + ".",
        "说话的人听起来很高兴。" * 12,
        "ผู้พูดมีความสุข" * 10,
    ],
)
def test_loops_at_the_end_and_in_the_middle(loop: str) -> None:
    assert loops(f"{START} {loop}")
    assert loops(f"{START} {loop} {START.replace('man', 'woman')}")
    assert loops(f"<think>\n{START} {loop}\n</think>\nRain.")


@pytest.mark.parametrize(
    "fine",
    [
        "Ha ha ha ha ha! Ha ha ha ha! That was funny, ha ha ha.",
        "Hahahahahahahaha, that is sooooooo funny!!!!!!",
        "Woof! Woof! Woof! Woof! A dog barks four times.",
        "Tick tock, tick tock, tick tock, tick tock, says the clock on the wall.",
        "".join(f"- {thing}: clearly heard in the recording\n" for thing in "rain wind dog man car door bell".split()),
        json.dumps({"speakers": [{"gender": "male", "emotion": e} for e in ("sad", "calm", "glad", "shy")]}, indent=4),
        "| sound | heard |\n" + "|" + "-" * 100 + "|\n| rain | yes |\n| wind | no |",
        "=" * 200 + f"\n{START}",
        " ".join(map(str, range(1, 120))),
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream. "
        * 2,
        "La la la la la, la la la la la.",
    ],
)
def test_lists_laughter_and_refrains_pass(fine: str) -> None:
    assert not loops(f"{START}\n{fine}")


def test_loops_that_vary_show_in_long_texts() -> None:
    rng = random.Random(0)
    parts = ["I hear a voice", "the voice is low", "so the man is calm", "but wait a moment"]
    assert loops(" ".join(rng.choice(parts) for _ in range(60)))


def test_long_different_texts_pass() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnop") for _ in range(rng.randint(2, 8))) for _ in range(400)]
    assert not loops(" ".join(rng.choices(words, k=3000)))


def test_the_verdict_says_what_is_repeated() -> None:
    verdict = GATES.check({"response": START + " It rains again." * 12, "prompt": "?"})
    assert verdict is not None and verdict.detail == "12 times 'it rains again'"
