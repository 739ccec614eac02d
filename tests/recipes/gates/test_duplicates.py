"""Duplicates: what a row may share with those before it."""

import pickle
import random
from typing import Any

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.gates import Duplicates, DuplicatesConfig
from nemo_desta.recipes.hashes import HashCounts, HashSet

LONG = (
    "The recording holds a man's voice that sounds calm and rather low, and while he talks about the weather of the "
    "coming week a dog barks twice somewhere behind him and a steady rain falls on a roof of metal"
)
DEFAULT = DuplicatesConfig()
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def row(audio: str, prompt: str, response: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"<|AUDIO|>\n{prompt}", "audios": [{"audio": audio, "text": None}]}]
    return {"id": f"{audio}-{prompt}", "prompt": prompt, "messages": messages, "response": response}


def reasons(rows: list[dict[str, Any]], config: DuplicatesConfig | None = DEFAULT) -> list[str | None]:
    seen = Duplicates(config)
    verdicts = [seen.check(one) for one in rows]
    return [verdict and verdict.reason for verdict in verdicts]


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(VOCABULARY) for _ in range(count))


def test_the_same_audio_with_the_same_prompt_comes_once() -> None:
    rows = [
        row("a.wav", "What is it?", "Rain."),
        row("b.wav", "What is it?", "Rain."),
        row("a.wav", "Which sound?", "Rain."),
        row("a.wav", '  "what is IT" ', "A dog."),
        row("a.wav", "What is it 2?", "A dog."),
    ]
    assert reasons(rows) == [None, None, None, "duplicate row", None]
    assert reasons(rows, DuplicatesConfig(exact=False)) == [None] * 5
    assert reasons(rows, None) == [None] * 5


def test_a_refused_row_is_not_remembered() -> None:
    seen = Duplicates()
    assert seen.check(row("a.wav", "One?", LONG)) is None
    assert seen.check(row("a.wav", "Two?", LONG)).reason == "near duplicate"
    assert seen.check(row("a.wav", "Two?", "Something else.")) is None


def test_nearly_the_same_answer_about_one_clip() -> None:
    assert reasons([row("a", "1", LONG), row("a", "2", LONG.replace("calm and", "calm, and") + ".")])[1] == (
        "near duplicate"
    )
    assert reasons([row("a", "1", LONG * 2), row("a", "2", LONG * 2 + " indeed")])[1] == "near duplicate"
    half = " ".join(LONG.split()[:20])
    assert reasons([row("a", "1", LONG), row("a", "2", half)]) == [None, None]
    assert reasons([row("a", "1", LONG), row("b", "2", LONG), row("a", "3", LONG)]) == [None] * 3
    thought = [row("a", str(n), f"{n} {words(random.Random(n), 30)}</think>{LONG}") for n in range(2)]
    assert reasons(thought) == [None, "near duplicate"]


def test_short_equal_answers_are_legitimate() -> None:
    assert reasons([row("a", str(n), "The speaker is male, and that is all.") for n in range(5)]) == [None] * 5
    assert reasons([row(str(n), "Who?", "The speaker is male.") for n in range(500)]) == [None] * 500


def test_long_answers_come_up_to_the_cap_in_all() -> None:
    rows = [row(f"{n}.wav", "Describe it.", LONG) for n in range(150)]
    assert reasons(rows) == [None] * 100 + ["too many copies"] * 50
    assert reasons(rows[:5], DuplicatesConfig(max_copies=3)) == [None] * 3 + ["too many copies"] * 2
    assert reasons(rows, DuplicatesConfig(max_copies=0)) == [None] * 150


def test_the_cap_sees_through_small_changes_and_lets_others_pass() -> None:
    rng = random.Random(0)
    start = LONG.split()
    varied = []
    for number in range(300):
        changed = list(start)
        changed[rng.randrange(len(changed))] = rng.choice(VOCABULARY)
        varied.append(row(f"{number}.wav", "Describe it.", " ".join(changed)))
    found = reasons(varied, DuplicatesConfig(max_copies=10))
    assert found.count("too many copies") > 120  # equal answers would give 290
    different = [row(f"{number}.wav", "Describe it.", words(rng, 40)) for number in range(2000)]
    assert reasons(different, DuplicatesConfig(max_copies=1)).count("too many copies") <= 2


def test_a_phrase_in_common_is_no_copy() -> None:
    rng = random.Random(0)
    phrase = " ".join(LONG.split()[:15])
    rows = [row(f"{number}.wav", "Describe it.", f"{phrase} {words(rng, 20)}") for number in range(2000)]
    assert reasons(rows, DuplicatesConfig(max_copies=20)).count("too many copies") == 0


def test_memory_hardly_grows_with_rows() -> None:
    rng = random.Random(0)
    seen, sizes = Duplicates(), []
    for number in range(6_000):
        if number in (1_000, 5_999):
            sizes.append(len(pickle.dumps(seen)))
        seen.check(row(f"{number}.wav", "Describe it.", words(rng, 35)))
    assert 8 * 5_000 < sizes[1] - sizes[0] < 24 * 5_000 + 10_000


def test_hash_set_is_a_set() -> None:
    rng = random.Random(0)
    numbers = [rng.getrandbits(64) | 1 for _ in range(5_000)]
    mine = HashSet()
    for number in numbers + numbers[:100]:
        mine.add(number)
    assert len(mine) == len(set(numbers))
    assert all(number in mine for number in numbers)
    assert not any(rng.getrandbits(64) in mine for _ in range(5_000))


def test_counts_never_count_too_few() -> None:
    rng = random.Random(0)
    numbers = [rng.getrandbits(64) for _ in range(2_000)]
    counts, true = HashCounts(), dict.fromkeys(numbers, 0)
    for _ in range(10_000):
        number = rng.choice(numbers)
        counts.add(number)
        true[number] += 1
    assert all(counts[number] >= times for number, times in true.items())
    assert sum(counts[number] > times for number, times in true.items()) < 5


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError, match="min_jaccard.*1.5"):
        DuplicatesConfig(min_jaccard=1.5)
    with pytest.raises(ConfigError, match="max_copies.*-1"):
        DuplicatesConfig(max_copies=-1)
