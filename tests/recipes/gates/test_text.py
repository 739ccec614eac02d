"""Gates that read the text alone, and what the answer of a thinking LLM is."""

from typing import Any

import pytest

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates import REGENERABLE, GatesConfig, RowGates, Seen, answer_of
from nemo_desta.recipes.items import Rejection

SENTENCE = "The speaker sounds calm, and a dog barks far away while it rains."


def reason(response: str, config: GatesConfig | None = None, **fields: Any) -> str | None:
    row = {"id": "r", "prompt": "Describe the audio.", "response": response, "truncated": False, **fields}
    verdict = RowGates(config or GatesConfig()).check(row)
    return verdict and verdict.reason


def test_answer_is_what_stands_behind_the_last_closing_tag() -> None:
    assert answer_of("<think>\nhm\n</think>\n\nRain.\n") == "Rain."
    assert answer_of("hm</think>no, wait</think>Rain.") == "Rain."
    assert answer_of("[THINK]hm[/THINK]Rain.") == "Rain."
    assert answer_of("Still thinking") == "Still thinking"
    assert answer_of("hm</reason>Rain.", ("</reason>",)) == "Rain."


def test_good_rows_pass_every_default_gate() -> None:
    assert reason(SENTENCE) is None
    assert reason(f"It could be rain.\n</think>\n\n{SENTENCE}") is None
    assert reason("male") is None
    assert reason('{"gender": "male", "emotion": "happy"}') is None


@pytest.mark.parametrize("response", ["", " \n", "I hear rain.\n</think>\n\n"])
def test_empty_answers(response: str) -> None:
    assert reason(response) == "empty"


def test_a_trace_cut_off_at_its_end_is_not_empty() -> None:
    assert reason("I hear rain.\n</think>\n", truncated=True) is None
    assert reason("  ", truncated=True) == "empty"


@pytest.mark.parametrize(
    "bad", ["\ufffd", "\x00", "\x1b", "\x85", "\ud83d", "\ue123", "\uffff", "<|im_start|>", "[INST]"]
)
def test_what_is_not_text(bad: str) -> None:
    assert reason(f"{SENTENCE[:20]}{bad}{SENTENCE[20:]}") == "not text"


@pytest.mark.parametrize("good", ["\t", "\n\n", "\r\n", "\u00a0", "é", "🎵", "👩\u200d🎤", "—", "a <| b", "½"])
def test_what_is_text(good: str) -> None:
    assert reason(f"{SENTENCE}{good}{SENTENCE[:30]}") is None


def test_truncated_rows_stay_unless_told_otherwise() -> None:
    assert reason(SENTENCE, truncated=True) is None
    assert reason(SENTENCE, GatesConfig(truncated="drop"), truncated=True) == "truncated"
    assert reason(SENTENCE, GatesConfig(truncated="drop")) is None


def test_lengths_of_answer_and_response_are_apart() -> None:
    limits = {"length": {"answer": {"min_words": 3, "max_words": 13}, "response": {"max_characters": 200}}}
    config = parse(GatesConfig, limits, "gates")
    assert reason(SENTENCE, config) is None
    assert reason(SENTENCE + " And so on.", config) == "too long"
    assert reason(f"{'hm, ' * 20}</think>{SENTENCE}", config) is None
    assert reason(f"{SENTENCE * 4}</think>{SENTENCE}", config) == "too long"
    assert reason("hm hm hm hm</think>It rains.", config) == "too short"
    assert reason("hm hm hm hm</think>It rains.", config, truncated=True) is None


def test_each_gate_can_be_turned_off() -> None:
    config = parse(GatesConfig, {"empty": False, "not_text": False, "loops": None, "refusals": None}, "gates")
    assert reason("", config) is None
    assert reason("a \x00 b", config) is None
    assert reason("rain and " * 100, config) is None
    assert reason("I'm sorry, but I can't listen to audio.", GatesConfig(refusals=None, leak=False)) is None


def test_leaks_are_looked_for_by_default() -> None:
    leaking = "The description says that the speaker is happy."
    assert reason(leaking) == "leak"
    assert reason(leaking, GatesConfig(leak=False)) is None


def test_the_first_objection_counts() -> None:
    assert reason("I cannot listen to audio.\x00 " + "rain and " * 50) == "not text"
    assert reason("I cannot listen to audio. " + "rain and " * 50) == "repetition loop"


def test_config_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="keep.*drop.*'cut'"):
        parse(GatesConfig, {"truncated": "cut"}, "gates")
    with pytest.raises(ConfigError, match="min_word"):
        parse(GatesConfig, {"length": {"answer": {"min_word": 3}}}, "gates")
    with pytest.raises(ConfigError, match="no regular expression"):
        parse(GatesConfig, {"refusals": {"extra": ["(unclosed"]}}, "gates")


def test_every_verdict_of_a_row_has_a_reason_to_ask_again() -> None:
    bad = ["", "a\x00", "a " * 20_000, "I cannot listen to audio.", "我听到雨声和狗叫的声音。"]
    assert {reason(response) for response in bad} <= REGENERABLE


class NoDigits:
    """A gate of another package."""

    regenerable = frozenset({"digits"})

    def __init__(self, *, allowed: int = 0) -> None:
        self.allowed = allowed

    def __call__(self, seen: Seen) -> Rejection | None:
        count = sum(character.isdigit() for character in seen.answer)
        return Rejection("digits", f"{count} digits") if count > self.allowed else None


def test_a_gate_of_ones_own_runs_after_the_others() -> None:
    own = {"own": [{"_target_": f"{__name__}.NoDigits", "allowed": 1}]}
    config = parse(GatesConfig, own, "gates")
    assert reason("There are 12 people in the room.", config) == "digits"
    assert reason("There are 2 people in the room.", config) is None
    assert reason("", config) == "empty"
    assert "digits" in RowGates(config).regenerable and "digits" not in REGENERABLE
    for wrong, message in (
        ({"_target_": f"{__name__}.NoDigits", "alowed": 1}, "has no argument 'alowed'. Did you mean 'allowed'"),
        ({"name": "no_digits"}, "unknown gate 'no_digits'"),
        (5, "'gates.own.0' must be a mapping, found 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(GatesConfig, {"own": [wrong]}, "gates")
